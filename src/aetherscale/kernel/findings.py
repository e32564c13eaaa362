"""The findings of `doctor`."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field


class Finding(Struct, frozen=True):
    """One thing that a node needs, as it was found; `remedy` is what to type or do where it is not well.

    An *error* is where a node cannot do its work, a *warning* where it can, but slower, less safely, or not all of it.
    """

    check: str
    status: Literal["ok", "warning", "error"]
    found: str
    remedy: str = field(default="", name="mend")
    """Called so in `doctor --json` since the first version."""
