"""That an image is not taken, and why. Apart, so that every format can say it."""

from __future__ import annotations

from aetherscale.kernel.fault import Fault


class ImageRejected(Fault):
    """A file is no image that is taken. `reason` reads after "image rejected:"."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy, retryable=False)
