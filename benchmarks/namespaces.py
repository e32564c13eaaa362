"""Network namespaces of the benchmark's own: nothing of the host's is touched. They need root and /dev/net/tun."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")

CLONE_NEWNET: Final = 0x4000_0000


@contextmanager
def own_namespace() -> Iterator[None]:
    """The calling thread, and the threads and processes that it starts, are in a network namespace of their own."""
    outer = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare()
        try:
            yield
        finally:
            ctypes.CDLL(None).setns(outer, CLONE_NEWNET)
    finally:
        os.close(outer)


def unshare() -> None:
    """The calling thread is in a new network namespace for good, whose loopback is up. OSError: it takes root."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "a network namespace cannot be made: it takes root")
    ip("link set lo up")


def ip(words: str) -> None:
    """Have ip(8) do something in the namespace of this thread."""
    subprocess.run(["ip", *words.split()], check=True, stdout=subprocess.DEVNULL)


class Place:
    """A network namespace with a thread that never leaves it, and goes with it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.do(unshare)
        self.tid: int = self.do(threading.get_native_id)
        """By which ip(8) finds the namespace."""

    def do(self, work: Callable[[], T]) -> T:
        """Do something in it, and wait for that."""
        return self._thread.submit(work).result()

    def close(self) -> None:
        """Let it go."""
        self._thread.shutdown()
