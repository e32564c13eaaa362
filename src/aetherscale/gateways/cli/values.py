"""How the texts of flags and arguments are read: sizes, durations, positions, names. Each raises ValueError that says
what was expected.
"""

from __future__ import annotations

import re
from typing import Final

MOST_DIGITS: Final = 18
_AMOUNT: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*([A-Za-z]*)")
_MIB: Final = {"m": 1, "mb": 1, "mib": 1, "g": 1024, "gb": 1024, "gib": 1024, "t": 1024**2, "tb": 1024**2}
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def mebibytes(text: str) -> int:
    """`512M` or `2G` as MiB; the letters are binary units."""
    amount, unit = _amount(text)
    if unit not in _MIB:
        raise ValueError("expected a size with its unit, like 512M or 2G")
    size = amount * _MIB[unit]
    if size != int(size):
        raise ValueError("expected a whole number of MiB")
    return int(size)


def gibibytes(text: str) -> int:
    """`10G` as GiB."""
    try:
        size_mib = mebibytes(text)
    except ValueError:
        raise ValueError("expected a size with its unit, like 10G") from None
    if size_mib % 1024:
        raise ValueError("expected whole GiB, like 10G")
    return size_mib // 1024


def seconds(text: str) -> float:
    """`30`, `30s`, `5m` or `2h` as seconds."""
    amount, unit = _amount(text)
    if unit not in _SECONDS:
        raise ValueError("expected a duration, like 30s or 5m")
    return amount * _SECONDS[unit]


def number(text: str) -> int:
    """A whole number that is not negative."""
    if text.isascii() and text.isdigit() and len(text) > MOST_DIGITS:
        raise ValueError(f"expected a whole number of at most {MOST_DIGITS} digits")
    if not text.isascii() or not text.isdigit():
        raise ValueError("expected a whole number, 0 or more")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if text.isascii() and text.isdigit() and int(text[:MOST_DIGITS]):
        return number(text)
    raise ValueError("expected a whole number, 1 or more")


def label(text: str) -> tuple[str, str]:
    """`key=value`."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError("expected KEY=VALUE")
    return key, value


def user_name(text: str) -> str:
    """The name of a user in a guest, as useradd(8) has it."""
    if re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", text) is None:
        raise ValueError("expected the name of a user: lower-case letters, digits, - and _, at most 32")
    return text


def detach_key(text: str) -> bytes:
    """`^]` or `ctrl-]` or one letter as the byte that the terminal sends for it."""
    lowered = text.lower()
    for prefix in ("ctrl-", "^"):
        if lowered.startswith(prefix) and len(lowered) == len(prefix) + 1 and "@" <= lowered[-1].upper() <= "_":
            return bytes([ord(lowered[-1].upper()) & 0x1F])
    if len(text) == 1 and text.isascii() and text.isprintable():
        return text.encode()
    raise ValueError("expected a key, like ctrl-] or ^a")


def _amount(text: str) -> tuple[float, str]:
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        return 0.0, "?"
    return float(found.group(1)), found.group(2).lower()
