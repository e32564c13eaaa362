"""`vm console`: this terminal as one reader and typist of a VM's serial line.

    reply of vm-console ──▶ stdout        stdin ──▶ console-input (no reply), every 10 s an empty one: "still here"

A terminal is put into raw mode, so that every key goes to the guest but the one that leaves; it is put back whatever
happens. What the guest asked a terminal before this one was there is not shown to it: it would answer.
"""

from __future__ import annotations

import base64
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from aetherscale.bus.bus import BusUnavailable, NoResponders
from aetherscale.gateways.cli.client import ANSWER_S, Chunk, chunk_of
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import NO_NODE, Failure
from aetherscale.gateways.cli.place import start
from aetherscale.gateways.cli.terminalqueries import History
from aetherscale.gateways.cli.work import suggesting
from aetherscale.kernel import subjects

STILL_HERE_S: Final = 10.0
CHUNK_BYTES: Final = 4096

STDIN: Final = 0
STDOUT: Final = 1


def attach(context: Context, reference: str, detach_key: bytes) -> None:
    """Attach until the detach key, the end of the VM, or Ctrl-C where there is no terminal. Raises `Failure`."""
    try:
        with suggesting(context, "vm", reference):
            line = _Line(context, reference)
        here = os.isatty(STDIN)
        leave = f"; {_shown(detach_key)} leaves" if here else ""
        context.out.note(f"attached to {reference} on {line.node}{leave}")
        with _raw(here):
            ended = _relay(line, detach_key if here else None)
        context.out.note(f"\n{reference} has ended" if ended else f"\nleft {reference}; it runs on")
    except BusUnavailable as away:
        raise Failure(
            503, f"the connection to the node was lost: {away}", hint=start(context.settings), status=NO_NODE
        ) from None


class _Line:
    """The serial line of a VM, as one session of its node hears it and types into it."""

    def __init__(self, context: Context, reference: str) -> None:
        """Attach. Raises `Failure`, `BusUnavailable`."""
        self._tenant = context.settings.tenant
        self._session = context.program.new_token()
        self.connection = context.client.connection
        body = msgspec.json.encode({"vm-id": reference, "session": self._session})
        self._subject = subjects.command(self._tenant, "compute", "vm-console")
        self._reply = self.connection.ask(self._subject, body)
        try:
            chunk = self._next(ANSWER_S)
        except NoResponders:
            chunk = None
        if chunk is None:
            message = f"no node answers on {self.connection.url}"
            raise Failure(503, message, hint=start(context.settings), status=NO_NODE)
        self.node = str(chunk["node"])
        self._history = History(int(chunk.get("history-bytes", 0)) if os.isatty(STDOUT) else 0)

    def heard(self) -> Iterator[bytes | None]:
        """What has come from the guest since; None where its process has ended."""
        while (chunk := self._next(0)) is not None:
            if chunk["type"] == "result":
                yield None
                return
            if chunk["type"] == "item":
                yield self._history.feed(base64.b64decode(chunk["data"]))

    def type(self, data: bytes) -> None:
        """Type into the line; nothing at all says "still here"."""
        self._say({"data": base64.b64encode(data).decode()})

    def leave(self) -> None:
        """Tell the node that nobody listens any more."""
        self._say({"detach": True})
        self._reply.unsubscribe()
        self.connection.flush()

    def _say(self, what: Mapping[str, Any]) -> None:
        subject = subjects.node_command(self._tenant, self.node, "compute", "console-input")
        self.connection.publish(subject, msgspec.json.encode({"session": self._session, **what}))

    def _next(self, timeout_s: float) -> Chunk | None:
        message = self._reply.receive(timeout_s)
        return chunk_of(message, self._subject) if message is not None else None


def _relay(line: _Line, detach_key: bytes | None) -> bool:
    """Carry bytes both ways; answers whether the VM has ended."""
    inputs = [line.connection.fileno(), STDIN]
    next_sign_s = time.monotonic() + STILL_HERE_S
    try:
        while True:
            for data in line.heard():
                if data is None:
                    return True
                _write(data)
            readable, _, _ = select.select(inputs, (), (), max(0.0, next_sign_s - time.monotonic()))
            if STDIN in readable:
                typed = os.read(STDIN, CHUNK_BYTES)
                if not typed:
                    inputs.remove(STDIN)
                before, key, _ = typed.partition(detach_key) if detach_key else (typed, b"", b"")
                if before:
                    line.type(before)
                if key:
                    return False
            if time.monotonic() >= next_sign_s:
                line.type(b"")
                next_sign_s = time.monotonic() + STILL_HERE_S
    finally:
        line.leave()


@contextmanager
def _raw(terminal: bool) -> Iterator[None]:
    """Every key as it is typed, where there is a terminal; as it was again at the end, also at that by a signal."""
    before = termios.tcgetattr(STDIN) if terminal else None
    handlers = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        if before is not None:
            # What was typed since the line that says how to leave is kept.
            tty.setraw(STDIN, termios.TCSADRAIN)
        yield
    finally:
        if before is not None:
            termios.tcsetattr(STDIN, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(STDOUT, data) :]


def _shown(key: bytes) -> str:
    return f"ctrl-{chr(key[0] | 0x40).lower()}" if key[0] < 0x20 else key.decode()
