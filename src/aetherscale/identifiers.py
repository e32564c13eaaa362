"""Where ids and the time come from: the one place that asks the host for either."""

from __future__ import annotations

import secrets
import time
from pathlib import Path


def now_us() -> int:
    """The time now, in microseconds since 1970 UTC."""
    return time.time_ns() // 1000


def new_id() -> str:
    """A UUID of version 7 (RFC 9562, section 5.7): in order of time, so that they are written side by side."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_epoch() -> str:
    """Names one log for ever: 16 hex digits."""
    return secrets.token_hex(8)


def boot_id() -> str:
    """Names the time since the host was started; see proc(5), /proc/sys/kernel/random/boot_id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
