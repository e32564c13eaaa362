"""Unpacking a compressed image: gzip, xz or zstd, told by its first bytes and by nothing else, in bounded memory.

What comes out is bounded too, by how much there is and by how much of it a byte of the file may become: a bomb is given
up early, and so is what turns out to be no image, or to be compressed again. Streams one after the other are one file,
as their own programs have it; zeros may follow the last one, and nothing else.
"""

from __future__ import annotations

import errno
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, NamedTuple

from aetherscale.actors.images.files.rejected import ImageRejected
from aetherscale.filecopy import free_bytes

Packing = Literal["gzip", "xz", "zstd"]

MOST_UNPACKED_BYTES: Final = 64 << 30
"""A file that becomes larger than this is refused."""
MOST_RATIO: Final = 1000
"""How many bytes one byte of the file may become on average, beyond the first `RATIO_FREE_BYTES` of what comes out."""
RATIO_FREE_BYTES: Final = 1 << 30
MOST_MEMORY_BYTES: Final = 128 << 20
"""What a decompressor may take: the dictionary of `xz -9` and the window of `zstd --long=27` fit."""

_ZSTD_WINDOW_LOG: Final = 27
_MAGICS: Final[tuple[tuple[bytes, Packing], ...]] = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
_READ_BYTES: Final = 256 << 10
_WRITE_BYTES: Final = 1 << 20
_GRAIN_BYTES: Final = 64 << 10
"""Zeros of this length are left out of the file."""
_HEAD_BYTES: Final = 64 << 10
_GZIP_WINDOW: Final = 31
_AGAIN: Final = "get it again, and give its checksum: --sha256"
_SMALLER: Final = "unpack it yourself and look at it; import what is in it if it is what it should be"

Advance = Callable[[int, int], None]
"""Called with how many bytes of how many of the compressed file have been read; may raise to end the work."""


class _Decoder(NamedTuple):
    """A decompressor of one stream: `step(input, most)` returns output; `end` the rest after the stream's end."""

    step: Callable[[bytes, int], bytes]
    wants_input: Callable[[], bool]
    rest: Callable[[], bytes | None]


def packing_of(file: int) -> Packing | None:
    """How an open file is compressed; None for one that is not, as far as this is known."""
    return _packing(os.pread(file, 8, 0))


def _packing(head: bytes) -> Packing | None:
    return next((packing for magic, packing in _MAGICS if head.startswith(magic)), None)


def unpack(packed: int, packing: Packing, target: int, look: Callable[[bytes], None], advance: Advance) -> int:
    """Unpack an open file into another one, which is empty; returns how many bytes came out.

    `look` is called with the first bytes that come out, and may raise. Raises `ImageRejected`, OSError, and what
    `advance` raises.
    """
    size_bytes = os.fstat(packed).st_size
    room_bytes = free_bytes(target)
    done = written = 0
    head: bytearray | None = bytearray()
    for piece, read_bytes in _pieces(packed, packing):
        if head is not None:
            head += piece
            if len(head) >= _HEAD_BYTES:
                _look(bytes(head), look)
                head = None
        done += len(piece)
        _require_bounded(done, read_bytes)
        written += _write(target, piece, done - len(piece))
        if written > room_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        advance(read_bytes, size_bytes)
    if head is not None:
        _look(bytes(head), look)
    os.ftruncate(target, done)
    return done


def _look(head: bytes, look: Callable[[bytes], None]) -> None:
    if _packing(head) is not None:
        raise ImageRejected("it is compressed twice", "unpack it once, and import what comes out")
    look(head)


def _require_bounded(done_bytes: int, read_bytes: int) -> None:
    if done_bytes > MOST_UNPACKED_BYTES:
        raise ImageRejected(f"it unpacks to more than {MOST_UNPACKED_BYTES} bytes", _SMALLER)
    if done_bytes > RATIO_FREE_BYTES and done_bytes > read_bytes * MOST_RATIO:
        raise ImageRejected(
            f"it unpacks to more than {MOST_RATIO} times its size: {done_bytes} bytes of {read_bytes}", _SMALLER
        )


def _write(target: int, piece: bytes, offset: int) -> int:
    """Write what is no long run of zeros; how many bytes were written."""
    written = 0
    for start in range(0, len(piece), _GRAIN_BYTES):
        grain = piece[start : start + _GRAIN_BYTES]
        if grain == _ZEROS[: len(grain)]:
            continue
        at = 0
        while at < len(grain):
            at += os.pwrite(target, grain[at:], offset + start + at)
        written += len(grain)
    return written


_ZEROS: Final = bytes(_GRAIN_BYTES)


def _pieces(packed: int, packing: Packing) -> Iterator[tuple[bytes, int]]:
    """What comes out, at most `_WRITE_BYTES` at a time, with how many bytes of the file were read for it."""
    offset, pending = 0, b""
    decoder: _Decoder | None = None
    while True:
        given = b""
        if decoder is None or decoder.wants_input():
            given = pending or os.pread(packed, _READ_BYTES, offset)
            offset += 0 if pending else len(given)
            pending = b""
        with _telling(packing):
            decoder = decoder or _decoder(packing)
            wanted = decoder.wants_input()
            out = decoder.step(given, _WRITE_BYTES)
            rest = decoder.rest()
        if out:
            yield out, offset
        if rest is None:
            if wanted and not given and not out:
                raise ImageRejected(f"it is cut off: its {packing} stream has no end", _AGAIN)
            continue
        decoder = None
        pending, offset = _next_stream(packed, rest, offset)
        if not pending:
            return
        if _packing(pending) != packing:
            raise ImageRejected(f"something follows the end of its {packing} stream", _AGAIN)


@contextmanager
def _telling(packing: Packing) -> Iterator[None]:
    """Raises `ImageRejected` for what the decompressors raise."""
    try:
        yield
    except MemoryError:
        raise _too_hungry(packing) from None
    except (lzma.LZMAError, zlib.error, EOFError, ValueError) as broken:
        raise _broken(packing, broken) from None
    except Exception as broken:
        if type(broken).__name__ != "ZstdError":  # of a module that is loaded where it is needed alone
            raise
        raise _broken(packing, broken) from None


def _next_stream(packed: int, rest: bytes, offset: int) -> tuple[bytes, int]:
    """What follows the end of a stream but for zeros, at least as much as a magic needs; nothing at the end."""
    while True:
        rest = rest.lstrip(b"\0")
        if len(rest) >= 8:
            return rest, offset
        more = os.pread(packed, _READ_BYTES, offset)
        offset += len(more)
        if not more:
            return rest, offset
        rest += more


def _too_hungry(packing: Packing) -> ImageRejected:
    return ImageRejected(
        f"its {packing} stream needs more than {MOST_MEMORY_BYTES} bytes of memory to be unpacked",
        "unpack it yourself, and import what comes out",
    )


def _broken(packing: Packing, error: Exception) -> ImageRejected:
    said = str(error)
    if "emory" in said:
        return _too_hungry(packing)
    return ImageRejected(f"its {packing} stream is broken: {said[:200]}", _AGAIN)


def _decoder(packing: Packing) -> _Decoder:
    match packing:
        case "gzip":
            return _gzip()
        case "xz":
            return _of(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MOST_MEMORY_BYTES))
        case "zstd":
            # The module of Python 3.14's own library, for those before it.
            from backports import zstd

            options = {int(zstd.DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG}
            return _of(zstd.ZstdDecompressor(options=options))


def _of(stream: Any) -> _Decoder:
    return _Decoder(
        lambda given, most: bytes(stream.decompress(given, most)),
        lambda: bool(stream.needs_input),
        lambda: bytes(stream.unused_data) if stream.eof else None,
    )


def _gzip() -> _Decoder:
    stream = zlib.decompressobj(_GZIP_WINDOW)

    def step(given: bytes, most: int) -> bytes:
        return stream.decompress(stream.unconsumed_tail + given, most)

    return _Decoder(step, lambda: not stream.unconsumed_tail, lambda: stream.unused_data if stream.eof else None)
