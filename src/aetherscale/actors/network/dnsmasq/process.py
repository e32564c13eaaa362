"""One process of dnsmasq that is ours: started, found again, observed, ended.

    prlimit → setpriv (its uid, no capability) → unshare (user, mount, network) → sh ─ "up" ─▶ the node
                                                      cables into its namespace ◀──────────────┘
    dnsmasq ◀─ setpriv (three capabilities, in its namespace alone) ◀─ sh ◀─ "go" ─────────────┘

The node waits for "up", since before it the process is in the host's namespace, and so would be the cable's far end.
The shell waits for "go" on a socket whose other end only the node has: where the node ends before, it ends as well.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from aetherscale.actors.network.dnsmasq.directory import DEVICES, SEEN_AT, Directory, Record
from aetherscale.actors.network.model.dns import ADVERTISER, SERVICE
from aetherscale.kernel.fault import Fault
from aetherscale.processes import identity, launch

DNSMASQ: Final = "dnsmasq"
PROGRAMS: Final = ("unshare", "setpriv", "sh", "mount", "ip")
LOG_LIMIT_BYTES: Final = 1 << 20
START_LIMIT_S: Final = 20.0
KILL_LIMIT_S: Final = 20.0
_FIND_LIMIT_S: Final = 2.0
_PAUSE_S: Final = 0.005
_READY: Final = ": started, version "
_UP, _GO = b"up\n", b"go\n"

SCRIPT: Final = f"""
trap '' HUP
echo up >&0
read -r go || exit 1
exec </dev/null
mount --no-canonicalize --bind . {SEEN_AT} || exit 1
cd {SEEN_AT} || exit 1
for device in {SERVICE} {ADVERTISER}; do
    settings=/proc/sys/net/ipv6/conf/$device
    [ ! -e $settings ] || echo 0 >$settings/accept_ra || exit 1
done
if [ -e /proc/sys/net/ipv4/conf/{ADVERTISER} ]; then
    echo 8 >/proc/sys/net/ipv4/conf/{ADVERTISER}/arp_ignore || exit 1
    echo 1 >/proc/sys/net/ipv6/conf/{ADVERTISER}/forwarding || exit 1
fi
ip -batch {DEVICES} || exit 1
keep=-all,+net_admin,+net_bind_service,+net_raw
exec setpriv --bounding-set=$keep --inh-caps=$keep --ambient-caps=$keep -- "$2" "$1"
"""
"""By `ADVERTISER` it answers no ARP, as it would for each address it has, with the MAC of the host's bridge; to answer
those who ask for a router it takes their MACs from the question, which only a router does."""

Ended = Callable[[str], None]


def running(directory: Directory) -> list[int]:
    """The pids of all processes of a resolver, in order."""
    return sorted(pid for _, pid in identity.processes_with(re.compile(re.escape(directory.word))))


def fingerprint(*texts: str) -> str:
    """What a process was started with."""
    return hashlib.sha256("\0".join((SCRIPT, *texts)).encode()).hexdigest()


class Process:
    """A process that is observed. `ended` is called with words when it ends, unless it was made to."""

    def __init__(self, record: Record, pidfd: int, ended: Ended) -> None:
        self.record = record
        self.gone = asyncio.Event()
        self.words = ""
        """How it ended."""
        self._pidfd = pidfd
        self._ended: Ended | None = ended
        asyncio.get_running_loop().add_reader(pidfd, self._has_ended)

    def send(self, number: signal.Signals) -> None:
        """Send a signal; none where it has ended."""
        if not self.gone.is_set():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def read_again(self) -> None:
        """Have it read its files of ports anew."""
        self.send(signal.SIGHUP)

    async def end(self) -> None:
        """Kill it, and wait until it has ended, which nobody is told of. Raises `Fault`."""
        self._ended = None
        self.send(signal.SIGKILL)
        try:
            async with asyncio.timeout(KILL_LIMIT_S):
                await self.gone.wait()
        except TimeoutError:
            raise _does_not_end(self.record.pid) from None

    def detach(self) -> None:
        """Let go of it; it runs on."""
        if not self.gone.is_set():
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self.gone.set()

    def _has_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self.words = _reap(self._pidfd)
        os.close(self._pidfd)
        self.gone.set()
        if self._ended is not None:
            self._ended(self.words)


async def find(directory: Directory, ended: Ended) -> Process | None:
    """The process that an earlier node has started, where it is alive and dnsmasq by now; None otherwise.

    The shell before that may be one that waits for a node which is gone, and is about to end.
    """
    record = directory.record()
    if record is None or record.boot_id != identity.boot_id():
        return None
    deadline_s = asyncio.get_running_loop().time() + _FIND_LIMIT_S
    # One in the middle of an exec has no command line for a moment.
    while (pidfd := identity.open_verified(record.pid, record.start_ticks, None, directory.word)) is None:
        late = asyncio.get_running_loop().time() > deadline_s
        if late or identity.start_ticks(record.pid) != record.start_ticks or identity.has_ended(record.pid):
            return None
        await asyncio.sleep(_PAUSE_S)
    if identity.arguments_of(record.pid)[1:] != [directory.word]:
        os.close(pidfd)
        return None
    return Process(record, pidfd, ended)


async def end_others(directory: Directory) -> None:
    """End the processes of a resolver that are not observed: one that lost its record, or a child of dnsmasq.

    dnsmasq has a child for each connection of TCP, which outlives it. Raises `Fault`.
    """
    for pid in running(directory):
        ticks = identity.start_ticks(pid)
        pidfd = None if ticks is None else identity.open_verified(pid, ticks, None, directory.word)
        if ticks is not None and pidfd is not None:
            await Process(Record(identity.boot_id(), pid, ticks, ""), pidfd, lambda _: None).end()


class Starting:
    """A process that has namespaces of its own, and waits. Close it; then it goes on only if it was released."""

    def __init__(self, process: Process, gate: socket.socket, directory: Directory) -> None:
        self.process = process
        self._gate = gate
        self._directory = directory

    def close(self) -> None:
        """Let go of the gate."""
        self._gate.close()

    async def release(self) -> None:
        """Let it go on and become dnsmasq, and wait until that serves. Raises `Fault`."""
        with suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(self._gate, _GO)
        await _within(self._serves(), self.process, self._directory)

    async def _serves(self) -> bool:
        while not self.process.gone.is_set():
            if _READY in self._directory.log():
                return True
            await asyncio.sleep(_PAUSE_S)
        return False


async def start(directory: Directory, dnsmasq: str, print_of: str, ended: Ended) -> Starting:
    """Start a process up to where it waits for its cables. Raises `Fault`, `OSError`."""
    program, words = launch.program(dnsmasq), {name: launch.program(name) for name in PROGRAMS}
    command = [words["unshare"], "--user", "--map-user=65534", "--map-group=65534", "--keep-caps", "--mount", "--net"]
    # One line of a shell that is always the same: whoever is in `sh -c` here is no user.
    command += ["--", words["sh"], "-c", SCRIPT, "aetherscale", directory.word, program]
    near, far = socket.socketpair()
    near.setblocking(False)
    try:
        process = _spawned(directory, command, far, print_of, ended)
    except BaseException:
        near.close()
        raise
    starting = Starting(process, near, directory)
    try:
        await _within(_is_up(near), process, directory)
    except BaseException:
        near.close()
        raise
    return starting


def _spawned(directory: Directory, command: Sequence[str], far: socket.socket, print_of: str, ended: Ended) -> Process:
    with far:
        log = directory.open_log()
        try:
            jail = launch.jail_of(directory.network_id, file_limit_bytes=LOG_LIMIT_BYTES)
            pid = launch.spawn(command, jail, directory.path, log, [], stdin=far.fileno())
        finally:
            os.close(log)
    # Not waited for yet, so pid and start are there even if it has ended by now.
    ticks = identity.start_ticks(pid)
    assert ticks is not None, "a child that was not waited for is there"
    process = Process(Record(identity.boot_id(), pid, ticks, print_of), os.pidfd_open(pid), ended)
    directory.write_record(process.record)
    return process


async def _is_up(near: socket.socket) -> bool:
    try:
        return await asyncio.get_running_loop().sock_recv(near, len(_UP)) == _UP
    except ConnectionError:
        return False


async def _within(step: Awaitable[bool], process: Process, directory: Directory) -> None:
    """A step of a start, which is over when it says so, when the process has ended, or too late. Raises `Fault`."""
    try:
        async with asyncio.timeout(START_LIMIT_S):
            if await step:
                return
            await process.gone.wait()
    except TimeoutError:
        await process.end()
        raise Fault(f"dnsmasq does not serve {START_LIMIT_S:g} s after its start", log_tail=directory.log()) from None
    raise Fault(f"dnsmasq did not start: {process.words}", _remedy(directory.log()), log_tail=directory.log())


def _remedy(log: str) -> str:
    if "unshare" in log:
        return (
            "allow user namespaces: sysctl user.max_user_namespaces kernel.unprivileged_userns_clone; "
            "RestrictNamespaces=user net mnt in the node's unit"
        )
    if "mount:" in log:
        return "allow mount(2) in the node's unit: SystemCallFilter=@mount"
    if "Read-only file system" in log:
        return "the node must be able to write below /proc/sys/net: ReadWritePaths=/proc/sys/net in its unit"
    return "its log says more"


def _does_not_end(pid: int) -> Fault:
    return Fault(f"dnsmasq, pid {pid}, does not end {KILL_LIMIT_S:g} s after SIGKILL", "it waits in the kernel: dmesg")


def _reap(pidfd: int) -> str:
    """How the process ended; it is waited for where it is a child of this node."""
    try:
        status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        status = None
    if status is None:
        return "it ended, it is not known how: the process was not this node's child"
    if status.si_code == os.CLD_EXITED:
        return f"it ended with status {status.si_status}"
    return f"it was ended by {signal.Signals(status.si_status).name}"
