"""Classic BPF for a socket: a program with named jumps becomes the bytes that the kernel runs for each packet.

The kernel checks a program when it is attached, and runs it on what the socket is about to receive: what it returns is
how many bytes of the packet are kept, 0 for a packet that is dropped, without a word to its sender. A load from beyond
the end of the packet drops it too. Jumps lead forward only. No privilege is needed: socket(7), SO_ATTACH_FILTER.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

# The codes of linux/filter.h and linux/bpf_common.h: the class of the instruction, its size, its mode.
_LOAD_WORD: Final = 0x20
_LOAD_HALF: Final = 0x28
_LOAD_BYTE: Final = 0x30
_LOAD_BYTE_AFTER: Final = 0x50
_LOAD_HALF_AFTER: Final = 0x48
_HEADER_LENGTH: Final = 0xB1
_AND: Final = 0x54
_JUMP: Final = 0x05
_IF_EQUAL: Final = 0x15
_IF_AT_LEAST: Final = 0x35
_IF_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06

_SO_ATTACH_FILTER: Final = 26
_SO_LOCK_FILTER: Final = 44
_WHOLE: Final = 0xFFFFFFFF
_FARTHEST: Final = 255
"""Instructions that a condition can skip."""

KEEP: Final = "keep"
DROP: Final = "drop"
"""Where every program may jump to."""


class Step(NamedTuple):
    """An instruction. `then` is where a condition leads that holds; the next step follows one that does not."""

    code: int
    value: int = 0
    then: str = ""


class Mark(NamedTuple):
    """A place that steps before it jump to. No step comes to it from above: the one before it has to be a jump."""

    name: str


Program = Sequence[Step | Mark]


def word(at: int) -> Step:
    """Load 4 bytes, big-endian, from this offset."""
    return Step(_LOAD_WORD, at)


def half(at: int) -> Step:
    """Load 2 bytes, big-endian."""
    return Step(_LOAD_HALF, at)


def byte(at: int) -> Step:
    """Load 1 byte."""
    return Step(_LOAD_BYTE, at)


def header_length(at: int) -> Step:
    """Have the length of the IPv4 header that begins at this offset, for `half_after` and `byte_after`."""
    return Step(_HEADER_LENGTH, at)


def half_after(at: int) -> Step:
    """Load 2 bytes from this offset and the length of the IPv4 header."""
    return Step(_LOAD_HALF_AFTER, at)


def byte_after(at: int) -> Step:
    """Load 1 byte from this offset and the length of the IPv4 header."""
    return Step(_LOAD_BYTE_AFTER, at)


def masked(bits: int) -> Step:
    """Keep these bits of what was loaded."""
    return Step(_AND, bits)


def equal(value: int, then: str) -> Step:
    """Jump where what was loaded is this."""
    return Step(_IF_EQUAL, value, then)


def at_least(value: int, then: str) -> Step:
    """Jump where what was loaded is this or more."""
    return Step(_IF_AT_LEAST, value, then)


def any_bit(bits: int, then: str) -> Step:
    """Jump where what was loaded has any of these bits."""
    return Step(_IF_ANY_BIT, bits, then)


def go(then: str) -> Step:
    """Jump."""
    return Step(_JUMP, 0, then)


def assemble(program: Program) -> bytes:
    """The instructions as the kernel takes them (struct sock_filter), with an end for `KEEP` and one for `DROP`."""
    whole = [*program, Mark(KEEP), Step(_RETURN, _WHOLE), Mark(DROP), Step(_RETURN)]
    places: dict[str, int] = {}
    steps: list[Step] = []
    for each in whole:
        if isinstance(each, Mark):
            assert each.name not in places, f"two marks are called {each.name}"
            assert not steps or steps[-1].code in (_JUMP, _RETURN), f"a step comes to {each.name} from above"
            places[each.name] = len(steps)
        else:
            steps.append(each)
    return b"".join(_encoded(step, number, places) for number, step in enumerate(steps))


def _encoded(step: Step, number: int, places: dict[str, int]) -> bytes:
    if not step.then:
        return struct.pack("=HBBI", step.code, 0, 0, step.value)
    distance = places[step.then] - number - 1
    assert distance >= 0, f"the jump to {step.then} leads back"
    if step.code == _JUMP:
        return struct.pack("=HBBI", step.code, 0, 0, distance)
    assert distance <= _FARTHEST, f"the jump to {step.then} is too far"
    return struct.pack("=HBBI", step.code, distance, 0, step.value)


def attach(receiver: socket.socket, program: bytes) -> None:
    """Have the kernel run the program on all that this socket is to receive, for as long as the socket is there.

    Whoever gets the socket cannot take it away. Raises `OSError` where the kernel refuses it.
    """
    steps = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: how many, and where they are.
    receiver.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(steps))
    )
    receiver.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
