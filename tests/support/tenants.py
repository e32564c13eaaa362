"""The two tenants of the tests that show that neither sees the other."""

from __future__ import annotations

from typing import Final

RED: Final = "red"
BLUE: Final = "blue"
