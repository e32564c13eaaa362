"""The program nft, as somebody else's who changes the rules of the host."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

NFT = shutil.which("nft") or "/usr/sbin/nft"
IS_NUMBERED_AS_THE_KERNEL_DOES = Path("/proc/self/ns/pid").stat().st_ino == 0xEFFF_FFFC
"""PROC_PID_INIT_INO: whether this runs in the first namespace of process ids."""


async def nft(text: str) -> int:
    """Somebody else's program has carried it out; its process id."""
    process = await asyncio.create_subprocess_exec(NFT, text)
    assert await process.wait() == 0
    return pid_of(process)


def pid_of(process: asyncio.subprocess.Process) -> int:
    """As `next_of` has it: the kernel's own, which a container does not know."""
    return process.pid if IS_NUMBERED_AS_THE_KERNEL_DOES else 0
