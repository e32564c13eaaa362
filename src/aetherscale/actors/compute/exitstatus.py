"""The exit statuses of programs that cannot be run, as shells have them."""

from __future__ import annotations

from typing import Final

EXIT_STATUS: Final = "exit-status"
"""The detail of a refusal to run a program: the exit status that a shell has for it."""
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
