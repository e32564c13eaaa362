"""`vm exec`: a program in a guest, with the streams of this program, on its terminal, or all at once as JSON."""

from __future__ import annotations

import base64
import os
from contextlib import suppress
from typing import Any

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import FAILED, Failure, bad_usage
from aetherscale.gateways.cli.streams import STDIN, stdin_is_a_terminal, whole_stdin
from aetherscale.gateways.cli.work import suggesting, taken

EXEC_INPUT_BYTES = 128 * 1024
"""The most bytes that a node takes as the stdin of a program at once: more does not fit into one message."""
EXEC_S = 30.0
"""How long a program may take whose output comes at its end, unless --timeout says so."""
SIGNAL_BASE = 128
"""As shells have it: a program that was ended by a signal has 128 and its number as exit status."""
NOT_IMPLEMENTED = 501
NOT_EXECUTABLE = 126
NOT_FOUND = 127


def exec_vm(context: Context) -> int:
    """Run a program in the guest; answers with its exit status."""
    try:
        return _run(context)
    except Failure as failure:
        # That it is not there, or cannot be executed, has the status that a shell has for it.
        status = failure.details.get("exit-status")
        if status in (NOT_EXECUTABLE, NOT_FOUND):
            failure.status = status
        raise


def _run(context: Context) -> int:
    values = context.values
    if values["tty"]:
        return _on_terminal(context)
    if context.out.json:
        return _at_once(context)
    from aetherscale.gateways.cli.programs import run_with_streams

    reads_stdin = values["interactive"] or not (stdin_is_a_terminal() or _stdin_is_nothing())
    name, command = values["NAME"], values["COMMAND"]
    try:
        return run_with_streams(context, name, command, reads_stdin=reads_stdin, timeout_s=values["timeout"])
    except Failure as failure:
        if failure.code != NOT_IMPLEMENTED:
            raise
        context.out.note(f"{failure.message}; so its output comes at its end")
    return _at_once(context)


def _stdin_is_nothing() -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(STDIN), os.stat(os.devnull))
    return True


def _at_once(context: Context) -> int:
    """Have the guest agent alone run it: input with the request, output at its end."""
    values = context.values
    timeout_s = EXEC_S if values["timeout"] is None else values["timeout"]
    options: dict[str, Any] = {"vm-id": values["NAME"], "command": values["COMMAND"], "timeout-s": timeout_s}
    stdin = whole_stdin(EXEC_INPUT_BYTES, timeout_s, asked_for=values["interactive"])
    if stdin is None:
        context.out.note("stdin sends nothing and does not end, so the program gets no input; -i waits for it")
    if stdin:
        options["stdin"] = base64.b64encode(stdin).decode()
    with suggesting(context, "vm", values["NAME"]):
        ended = context.client.result("compute", "exec-vm", options, timeout_s=timeout_s + 10)
    with taken("the program has run"):
        if context.out.json:
            context.out.value({name: value for name, value in ended.items() if name != "type"})
        else:
            context.out.raw(ended["stdout"])
            context.out.raw_error(ended["stderr"])
            if ended["truncated"]:
                context.out.note("the output was longer; its end is left out")
    if ended["signal"] is not None:
        return SIGNAL_BASE + int(ended["signal"])
    code = ended["exit-code"]
    return code if isinstance(code, int) and 0 <= code < SIGNAL_BASE * 2 else FAILED


def _on_terminal(context: Context) -> int:
    from aetherscale.gateways.cli.console import run_on_terminal

    name, command = context.values["NAME"], context.values["COMMAND"]
    for option, is_given in (("--json", context.out.json), ("--timeout", context.values["timeout"] is not None)):
        if is_given:
            raise bad_usage(f"vm exec: -t and {option}: got both, expected one of them", f"leave out -t or {option}")
    if not stdin_is_a_terminal():
        raise bad_usage(
            "vm exec: -t is refused: the input device is not a TTY",
            "leave out -t; the program then gets what comes from stdin",
        )
    return run_on_terminal(context, name, command, context.values["detach-key"])
