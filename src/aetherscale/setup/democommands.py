"""What the demo types: each command is shown before it runs, and has to succeed."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from typing import Any, Final

COMMAND_S: Final = 1200.0
WIDTH: Final = 80


class Deviation(Exception):
    """Something is not as it should be."""


class Commands:
    """The program `aetherscale`, as somebody types it who has set these variables."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def line(self, *words: str) -> list[str]:
        """The command line that is run for these words."""
        return [sys.executable, "-m", "aetherscale", *words]

    def run(self, *words: str) -> None:
        """Show a command, run it, and show what it says. Raises `Deviation` where it fails."""
        typed(shown(*words))
        done = self.done(*words)
        if done.returncode != 0:
            raise Deviation(f"`{shown(*words)}` ended with status {done.returncode}")

    def done(self, *words: str, capture: bool = False) -> subprocess.CompletedProcess[bytes]:
        """Run a command without showing it. Raises `Deviation` where it does not end."""
        try:
            return subprocess.run(
                self.line(*words),
                env=self.environ,
                stdin=subprocess.DEVNULL,
                capture_output=capture,
                timeout=COMMAND_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Deviation(f"`{shown(*words)}` did not end within {COMMAND_S:.0f} s") from None

    def asked(self, *words: str) -> Any:
        """The JSON output of a command, without showing it. Raises `Deviation` where it fails."""
        done = self.done(*words, "--json", capture=True)
        if done.returncode != 0:
            raise Deviation(f"`{shown(*words)}` ended with status {done.returncode}: {done.stderr!r}")
        return json.loads(done.stdout)


def shown(*words: str) -> str:
    """A command line as it is typed."""
    return shlex.join(("aetherscale", *words))


def typed(line: str) -> None:
    """Show a line that is about to run."""
    print(f"\n$ {line}", flush=True)


def said(line: str) -> None:
    """Show a line of what a program said."""
    print(line, flush=True)


def heading(title: str, about: str) -> None:
    """Begin a part of the demo."""
    width = min(shutil.get_terminal_size().columns, WIDTH)
    if sys.stdout.isatty():
        about = "\n".join(textwrap.fill(line, width, break_on_hyphens=False) for line in about.split("\n"))
    print(f"\n── {title} {'─' * max(0, width - len(title) - 4)}\n{about}", flush=True)
