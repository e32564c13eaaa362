"""QEMU started by hand, with a QMP socket and no driver: the floor of what a driver can do."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from qemu.qmp import QMPClient, QMPError

from benchmarks.harness import Samples

MEMORY_MIB: Final = 64
RUNNING: Final = b'"running": true'
PAUSED: Final = b'"running": false'


def spawn(monitor: Path, image: Path, *options: str) -> int:
    """Start QEMU, which connects to a socket that already listens; its pid. The image is only read."""
    file = f'{{"driver": "file", "filename": "{image}", "read-only": true}}'
    disk = f'{{"driver": "raw", "node-name": "d", "read-only": true, "file": {file}}}'
    return os.posix_spawnp(
        "setpriv",
        [
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-M", "q35", "-accel", "tcg"),
            *("-m", str(MEMORY_MIB), "-nodefaults", "-display", "none", "-qmp", f"unix:{monitor}"),
            *("-blockdev", disk, "-device", "virtio-blk-pci,drive=d"),
            *options,
        ],
        os.environ,
    )


def end(pid: int) -> float:
    """Kill and reap a process; the milliseconds that it took."""
    begun = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return (time.perf_counter() - begun) * 1000


def boot(monitor: Path, image: Path, *options: str, paused: bool = False) -> int:
    """Start QEMU and ask it until the guest runs, or is there to be let run: its pid."""
    with listening(monitor) as listener:
        pid = spawn(monitor, image, *(("-S",) if paused else ()), *options)
        connection, _ = listener.accept()
    with connection, connection.makefile("rwb") as lines:
        lines.readline()
        lines.write(b'{"execute": "qmp_capabilities"}{"execute": "query-status"}')
        lines.flush()
        while (PAUSED if paused else RUNNING) not in (line := lines.readline()):
            assert line
    return pid


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket that listens, for as long as the block lasts."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


def hand_turn(directory: Path, image: Path, times: int) -> Samples:
    """From nothing to running, and from the wish to end it to the end."""
    up, down = [], []
    for _ in range(times):
        begun = time.perf_counter()
        pid = boot(directory / "hand.sock", image)
        up.append((time.perf_counter() - begun) * 1000)
        down.append(end(pid))
    return {"create ms": up, "kill ms": down}


async def qmp_turn(directory: Path, image: Path, times: int) -> Samples:
    """The same with qemu.qmp at the socket."""
    up, down = [], []
    path = directory / "qmp.sock"
    for _ in range(times):
        path.unlink(missing_ok=True)
        begun = time.perf_counter()
        client = QMPClient("bench")
        await client.start_server(str(path))
        pid = spawn(path, image)
        await client.accept()
        while not (await client.execute("query-status"))["running"]:  # type: ignore[index]
            pass
        up.append((time.perf_counter() - begun) * 1000)
        down.append(end(pid))
        with suppress(QMPError, OSError, EOFError):  # the connection is broken, which is no news
            await client.disconnect()
    return {"create ms": up, "kill ms": down}


def creates_turn(directory: Path, image: Path, much: tuple[int, int, int], *, paused: bool) -> Samples:
    """Guests per second that one thread starts, and that several start at once; they are ended afterwards.

    `much`: how many alone; how many threads, and how many each of them.
    """
    alone, clients, each = much
    return {
        "1 client creates/s": [_create_together(directory, image, 1, alone, paused=paused)],
        f"{clients} clients creates/s": [_create_together(directory, image, clients, each, paused=paused)],
    }


def _create_together(directory: Path, image: Path, clients: int, each: int, *, paused: bool) -> float:
    pids: list[int] = []

    def work(number: int) -> None:
        for _ in range(each):
            pids.append(boot(directory / f"hand{number}.sock", image, paused=paused))

    rate = together(clients, clients * each, work)
    for pid in pids:
        end(pid)
    return rate


def together(clients: int, times: int, work: Callable[[int], None]) -> float:
    """How often per second something happens that so many threads do at once. Each is told its number."""
    with ThreadPoolExecutor(clients) as pool:
        begun = time.perf_counter()
        for each in [pool.submit(work, number) for number in range(clients)]:
            each.result()
        return times / (time.perf_counter() - begun)
