"""How a member of the service's group reads a log that only the service's user may open, and sees the host as it does.

`replay`, `why`, `events`, `doctor` and their like read a state directory, which is closed to everybody but the node's
user, and stays so. A member's command line hands its words, with the descriptors of its stdout and stderr, to a socket
of systemd's that only the group may connect to; for each connection systemd starts `python -m
aetherscale.gateways.cli.reader` as the service's user, which runs those words if they only read, and answers with
their exit status. So nothing is copied, no node need run, and a terminal stays one.

    member: {"words": …, "environment": …} + stdout, stderr  ─▶  reader: aetherscale WORDS  ─▶  {"status": 0}

When the member hangs up, as by Ctrl-C, the reading is interrupted.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import msgspec
from msgspec import Struct

from aetherscale import service
from aetherscale.gateways.cli.failures import FAILED, NO_NODE, USAGE, Failure
from aetherscale.gateways.cli.grammar import Command
from aetherscale.gateways.cli.main import DEFAULT_COMMAND, INTERRUPTED
from aetherscale.gateways.cli.parse import parse
from aetherscale.gateways.cli.tree import ENTRIES

LARGEST_BYTES: Final = 64 * 1024
STREAMS: Final = 2
PLACES: Final = ("state-dir", "nats", "nats-creds", "nats-nkey", "nats-token-file", "config")
"""Options that name files and servers: the reader has its own, and opens no others."""
DISPLAY: Final = re.compile(r"(?:TERM|COLUMNS|LINES|NO_COLOR|TZ|LANG|LC_[A-Z]+|AETHERSCALE_TENANT)")
"""The variables of the member's environment that affect the output."""
HARMLESS: Final = re.compile(r"[A-Za-z0-9+_@.,-][A-Za-z0-9+_@.,/-]{0,99}")
"""Values of it: none that begins like a path."""
WHERE: Final = "journalctl -u 'aetherscale-reader@*'"


class Asked(Struct, frozen=True, forbid_unknown_fields=True):
    """A member's request."""

    words: list[str]
    environment: dict[str, str]


class Answered(Struct, frozen=True):
    """How it ended."""

    status: int


def ask(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Have the service's user run words that only read; their exit status. Raises `Failure` where that cannot be."""
    environment = {name: value for name, value in environ.items() if DISPLAY.fullmatch(name)}
    body = msgspec.json.encode(Asked(list(words), environment))
    if len(body) > LARGEST_BYTES:
        raise Failure(413, f"got {len(body)} bytes of words, expected at most {LARGEST_BYTES}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as asking:
        try:
            asking.connect(str(service.READER))
        except PermissionError:
            why, hint = service.membership()
            raise Failure(403, why, hint=hint, status=FAILED) from None
        except OSError as away:
            why = f"the service's reader does not answer on {service.READER}: {away.strerror}"
            raise Failure(503, why, hint=f"systemctl start {service.READER_SOCKET_UNIT}", status=NO_NODE) from None
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        socket.send_fds(asking, [body], [_open_or(number, nowhere) for number in (1, 2)])
        answer = asking.recv(LARGEST_BYTES)
    try:
        return msgspec.json.decode(answer, type=Answered).status
    except msgspec.MsgspecError:
        raise Failure(500, "the service's reader ended without an answer", hint=WHERE) from None


def _open_or(number: int, other: int) -> int:
    try:
        os.fstat(number)
    except OSError:
        return other
    return number


def answer(connection: socket.socket) -> None:
    """Serve one member."""
    body, descriptors, _, _ = socket.recv_fds(connection, LARGEST_BYTES, STREAMS)
    try:
        asked = msgspec.json.decode(body, type=Asked)
    except msgspec.MsgspecError as broken:
        print(f"not understood: {broken}", file=sys.stderr)
        return
    if len(descriptors) != STREAMS:
        print(f"got {len(descriptors)} descriptors, expected stdout and stderr", file=sys.stderr)
        return
    with suppress(OSError):  # who has hung up wants no answer
        connection.send(msgspec.json.encode(Answered(_status(asked, descriptors, connection))))


def _status(asked: Asked, descriptors: Sequence[int], connection: socket.socket) -> int:
    if why := refusal(asked.words):
        with suppress(OSError):
            os.write(descriptors[1], f"error: {why}\n".encode(errors="replace"))
        return USAGE
    shown = {name: value for name, value in asked.environment.items() if DISPLAY.fullmatch(name)}
    process = subprocess.Popen(
        [sys.executable, "-m", "aetherscale", *asked.words],
        stdin=subprocess.DEVNULL,
        stdout=descriptors[0],
        stderr=descriptors[1],
        env={**os.environ, **{name: value for name, value in shown.items() if HARMLESS.fullmatch(value)}},
    )
    pidfd = os.pidfd_open(process.pid)
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    waiting.register(connection, select.POLLIN)  # nothing more is said: it is the end that is heard
    ended = {descriptor for descriptor, _ in waiting.poll()}
    if pidfd not in ended:
        process.send_signal(signal.SIGINT)
    status = process.wait()
    return INTERRUPTED if status < 0 else status


def refusal(words: Sequence[str]) -> str:
    """Why words are not run here; empty for those that are: they only read, and only what is the service's."""
    if any("\0" in word for word in words):
        return "got a NUL, expected words"
    try:
        parsed = parse(words, ENTRIES, DEFAULT_COMMAND)
    except Failure as failure:
        return failure.message
    if not isinstance(parsed.node, Command) or not parsed.node.reads:
        return f"{parsed.name}: the service's reader only runs commands that read"
    ours = {"state-dir": str(service.STATE_DIR), "config": str(service.CONFIG)}
    given = [name for name in PLACES if parsed.values.get(name) not in (None, ours.get(name))]
    if given:
        return f"{parsed.name}: the service's reader takes no --{given[0]}"
    return ""


def main() -> int:
    """Serve the member whose connection is stdin."""
    with socket.socket(fileno=os.dup(0)) as connection:
        answer(connection)
    return 0


if __name__ == "__main__":
    sys.exit(main())
