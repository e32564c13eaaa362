"""A network namespace of a test's own: nothing in it is the host's, and it is gone with the test."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aetherscale.processes.users import has_capability

TUN: Final = "/dev/net/tun"
SYSCTLS: Final = "/proc/sys/net/ipv4/ip_forward"

_CAP_NET_ADMIN: Final = 12
_CAP_SYS_ADMIN: Final = 21
_CLONE_NEWNET: Final = 0x4000_0000
_CAPABILITIES_V3: Final = 0x2008_0522
_libc: Final = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """What this process lacks for a namespace with taps; "" for nothing."""
    if not has_capability(_CAP_SYS_ADMIN) or not has_capability(_CAP_NET_ADMIN):
        return "CAP_SYS_ADMIN and CAP_NET_ADMIN are needed for a network namespace"
    if not os.access(SYSCTLS, os.W_OK):
        return f"{SYSCTLS} cannot be written, as in a container"
    return "" if os.access(TUN, os.R_OK | os.W_OK) else f"{TUN} cannot be opened"


@contextmanager
def network_namespace() -> Iterator[None]:
    """A new one, for this thread and for the threads and processes that it starts."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _checked(_libc.unshare(_CLONE_NEWNET))
        try:
            yield
        finally:
            _checked(_libc.setns(before, _CLONE_NEWNET))
    finally:
        os.close(before)


@contextmanager
def without_net_admin() -> Iterator[None]:
    """This thread does without CAP_NET_ADMIN for a while: capset(2)."""
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0), (ctypes.c_uint32 * 6)()
    _checked(_libc.capget(header, sets))
    sets[0] ^= 1 << _CAP_NET_ADMIN
    _checked(_libc.capset(header, sets))
    try:
        yield
    finally:
        sets[0] ^= 1 << _CAP_NET_ADMIN
        _checked(_libc.capset(header, sets))


def _checked(status: int) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
