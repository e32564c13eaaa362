"""A directory of a cache for one build at a time."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aetherscale.actors.images.building.programs import Say
from aetherscale.runtime.threads import to_the_end


@asynccontextmanager
async def alone(cache_dir: Path, say: Say) -> AsyncIterator[None]:
    """Have the cache's directory, and keep every other user of it out, also one in another process."""
    await to_the_end(cache_dir.mkdir, mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(cache_dir / "lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say("waiting for another build")
                    told = True
                await asyncio.sleep(0.2)
        yield
    finally:
        os.close(descriptor)
