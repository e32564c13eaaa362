"""The event loop that is measured on: of the benchmark itself, and by the environment of every process it starts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, TypeVar

ASYNCIO: Final = "asyncio"
UVLOOP: Final = "uvloop"
LOOPS: Final = (ASYNCIO, UVLOOP)
VARIABLE: Final = "AETHERSCALE_BENCH_LOOP"
WITHOUT_UVLOOP: Final = "import sys; sys.modules['uvloop'] = None; "
"""Program text after which a node does not find uvloop."""

T = TypeVar("T")


def has_uvloop() -> bool:
    """Whether it is installed."""
    return find_spec(UVLOOP) is not None


def choose(loop: str | None) -> None:
    """Decide for this process and those that it starts."""
    if loop:
        os.environ[VARIABLE] = loop


def name() -> str:
    """What was chosen; by itself a node takes uvloop where it is installed."""
    return os.environ.get(VARIABLE) or (UVLOOP if has_uvloop() else ASYNCIO)


def program() -> tuple[str, ...]:
    """Arguments for Python that make it the program `aetherscale`, on the loop that was chosen."""
    without = "" if name() == UVLOOP else WITHOUT_UVLOOP
    return ("-c", without + "import sys; from aetherscale.__main__ import main; sys.exit(main())")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on the loop that was chosen."""
    if name() == ASYNCIO:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=import_module(UVLOOP).new_event_loop) as runner:
        return runner.run(main)
