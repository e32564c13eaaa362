"""That an image is not taken, and why. Apart, so that every format can say it."""

from __future__ import annotations


class ImageRejected(Exception):
    """A file is no image that is taken. `reason` reads after "image rejected:", `hint` says what to do."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
