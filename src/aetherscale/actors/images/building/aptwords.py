"""What apt, dpkg and mmdebstrap print, as the phases of a build: which package is at which step, at a slow pace."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from aetherscale.actors.images.building.programs import Say

PACE_S: Final = 1.0
"""Packages are named at this pace; a new phase is told at once."""

_PHASES: Final = tuple(
    (re.compile(pattern), phase)
    for pattern, phase in (
        (r"I: running apt-get update", "fetching the package lists"),
        (r"I: downloading packages with apt", "downloading packages"),
        (r"I: extracting archives", "unpacking the first packages"),
        (r"I: installing essential packages", "installing the essential packages"),
        (r"I: installing remaining packages", "installing the other packages"),
        (r"update-initramfs: Generating", "making the initial RAM file system"),
        (r"I: cleaning package lists", "tidying up"),
    )
)
_STEPS: Final = tuple(
    (re.compile(pattern), verb)
    for pattern, verb in (
        (r"Get:\d+ \S+ \S+ \S+ ([a-z0-9][a-z0-9+.-]+) ", "downloading"),
        (r"Unpacking (?:\S+/)?([a-z0-9][a-z0-9+.-]+)", "unpacking"),
        (r"Setting up ([a-z0-9][a-z0-9+.-]+)", "configuring"),
    )
)


class Teller:
    """Says what a program is at, from the lines that it prints."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._phase = ""
        self._told_s = 0.0

    def hear(self, line: str) -> None:
        """Say what the line means, if anything, and not too often."""
        for pattern, phase in _PHASES:
            if pattern.match(line):
                self._tell(phase)
                return
        for pattern, verb in _STEPS:
            if found := pattern.match(line):
                self._phase = f"{verb} {found[1]}"
                if asyncio.get_running_loop().time() - self._told_s >= PACE_S:
                    self._tell(self._phase)
                return

    def silent(self, seconds: float) -> None:
        """Say for how long nothing has happened."""
        self._say(f"{self._phase or 'starting'}: nothing new for {seconds:.0f} s")

    def _tell(self, text: str) -> None:
        self._phase = text
        self._told_s = asyncio.get_running_loop().time()
        self._say(text)
