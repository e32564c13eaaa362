"""What ends a run of the simulation."""

from __future__ import annotations


class Violation(AssertionError):
    """An invariant does not hold."""


class Wrong(AssertionError):
    """An event that should not be, or not so."""
