"""libnftables by ctypes: a text of nft's language goes in, and becomes one transaction of the kernel.

The library is Debian's package libnftables1. It is found when a `Nftables` is made, so nothing else fails without it.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from typing import Final

LIBRARY: Final = "libnftables.so.1"
"""The loader finds it where `ctypes.util.find_library` would, which starts a process for that."""

_TERSE: Final = 1 << 11
"""NFT_CTX_OUTPUT_TERSE."""


class NftError(Exception):
    """A text that nft or the kernel refused, whole. `words` is what nft said of it."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words


class Nftables:
    """One context of libnftables: a socket into the network namespace of the thread that makes it.

    May be used by any thread; calls wait for one another, and other threads run meanwhile.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        """OSError: the library is missing, or there is no memory for a context."""
        self._library = load(library)
        self._lock = threading.Lock()
        self._context: int | None = self._library.nft_ctx_new(0)
        if self._context is None:
            raise OSError("libnftables has made no context")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def run(self, text: str, *, terse: bool = False) -> str:
        """Carry the text out as one transaction; what nft prints, where it is `terse` without the elements of sets.

        NftError: it was refused, and nothing changed.
        """
        with self._lock:
            if self._context is None:
                raise ValueError("this context of libnftables is closed")
            self._library.nft_ctx_output_set_flags(self._context, _TERSE if terse else 0)
            status = self._library.nft_run_cmd_from_buffer(self._context, text.encode("ascii"))
            output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
            error: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        if status != 0:
            raise NftError(error.decode(errors="replace").strip() or f"nft ended with {status} and said nothing")
        return output.decode(errors="replace")

    def close(self) -> None:
        """Free the context. Idempotent."""
        with self._lock:
            if self._context is not None:
                self._library.nft_ctx_free(self._context)
                self._context = None


@cache
def load(name: str = LIBRARY) -> ctypes.CDLL:
    """The library. OSError: it is missing."""
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise OSError(f"{name} cannot be loaded: {error}; on Debian it is in the package libnftables1") from error
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for function, result, *arguments in (
        ("nft_ctx_new", pointer, ctypes.c_uint32),
        ("nft_ctx_free", None, pointer),
        ("nft_ctx_output_set_flags", None, pointer, ctypes.c_uint),
        ("nft_ctx_buffer_output", ctypes.c_int, pointer),
        ("nft_ctx_buffer_error", ctypes.c_int, pointer),
        ("nft_ctx_get_output_buffer", text, pointer),
        ("nft_ctx_get_error_buffer", text, pointer),
        ("nft_run_cmd_from_buffer", ctypes.c_int, pointer, text),
    ):
        entry = getattr(library, function)
        entry.restype, entry.argtypes = result, arguments
    return library
