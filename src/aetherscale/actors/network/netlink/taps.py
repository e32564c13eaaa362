"""Taps, by /dev/net/tun (Documentation/networking/tuntap.rst): what netlink cannot say of them.

A tap of ours is persistent, since to remove one takes 20 ms and QEMU's end has to be quick. It becomes so last of all:
a node that is killed before that leaves no tap behind. It belongs to root: to one that belongs to nobody everyone may
attach who can open /dev/net/tun, and on most hosts that is everyone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aetherscale.actors.network.netlink.faults import TUN, TUN_ACCESS, fault_of
from aetherscale.kernel.fault import Fault

DEVICE: Final = "/dev/net/tun"

_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_TUNSETOWNER: Final = 0x400454CC
_TUNSETVNETHDRSZ: Final = 0x400454D8
_HEADER_BYTES: Final = 12
"""struct virtio_net_hdr_v1."""
_TAP_WITH_HEADER: Final = 0x0002 | 0x1000 | 0x4000
"""IFF_TAP, IFF_NO_PI, IFF_VNET_HDR."""
_IFF_TUN_EXCL: Final = 0x8000
_REQUEST: Final = struct.Struct("16sH22x")
"""struct ifreq: name, flags."""
_ROOT: Final = 0
_SIOCGIFMTU: Final = 0x8921
_MTU: Final = struct.Struct("16si20x")
"""struct ifreq: name, MTU."""


def attach(name: str, *, new: bool) -> int:
    """Attach to a tap: the descriptor of its frames, each behind a virtio header of 10 bytes. It closes on exec.

    A new one is down, and gone with the descriptor until `keep`. One that is not to be new, and is not there any more,
    is made nevertheless. Raises `Fault`, also where the name is taken, or where somebody is attached to the tap.
    """
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        remedy = TUN_ACCESS if error.errno in (errno.EACCES, errno.EPERM) else TUN
        # EPERM is not about the capability here, but about the devices of a container.
        code = errno.EACCES if error.errno == errno.EPERM else error.errno or errno.EIO
        raise fault_of(f"open {DEVICE}", code, error.strerror or str(error), remedy) from error
    flags = _TAP_WITH_HEADER | (_IFF_TUN_EXCL if new else 0)
    try:
        with _told(f"attach to the tap {name}"):
            fcntl.ioctl(descriptor, _TUNSETIFF, _REQUEST.pack(name.encode(), flags))
            fcntl.ioctl(descriptor, _TUNSETOWNER, _ROOT)
    except Fault:
        os.close(descriptor)
        raise
    return descriptor


def attach_again(descriptor: int, name: str) -> None:
    """Make a tap anew for a descriptor whose own was removed: whoever has a copy of it, as QEMU, goes on with this one.

    It is down, and stays. Its header has the size that every guest's driver has with virtio 1.0 (5.1.6.1), which is not
    the one that the kernel begins with; what it was went with the old tap (EBADFD). What a guest can take of checksums
    and segmentation is not known either, so the kernel does all of that. Raises `Fault`, also where the name is taken,
    or the descriptor has a tap.
    """
    with _told(f"attach to the tap {name} again"):
        fcntl.ioctl(descriptor, _TUNSETIFF, _REQUEST.pack(name.encode(), _TAP_WITH_HEADER | _IFF_TUN_EXCL))
        fcntl.ioctl(descriptor, _TUNSETOWNER, _ROOT)
        fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, struct.pack("=i", _HEADER_BYTES))
    keep(descriptor, name)


def keep(descriptor: int, name: str) -> None:
    """Let the tap outlive its descriptor. Raises `Fault`."""
    with _told(f"keep the tap {name}"):
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)


def index_of(name: str) -> int:
    """The index of a link, for a tenth of what a request takes; 0 for none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def mtu_of(name: str) -> int:
    """The MTU of a link, in bytes. Raises `Fault`, also where there is none of this name."""
    with _told(f"tell the MTU of {name}"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        return int(_MTU.unpack(fcntl.ioctl(asking, _SIOCGIFMTU, _MTU.pack(name.encode(), 0)))[1])


@contextmanager
def _told(operation: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = "another process has it open" if error.errno == errno.EBUSY else error.strerror or str(error)
        raise fault_of(operation, error.errno or errno.EIO, said) from error
