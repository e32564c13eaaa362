"""An event loop of virtual time: nothing waits, and the same run is the same to the last step.

A loop like asyncio's own, but for its selector, which has no files: where asyncio would sleep until the next timer, the
clock is set to it. Whatever runs on it may use no thread, no socket and no file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context, ContextVar
from typing import Any, Final, Self, TypeVar

from aetherscale.bus.memory import MemoryBus

T = TypeVar("T")

PROCESS: ContextVar[int] = ContextVar("process", default=0)
"""Which process of the simulated node the running code belongs to; 0 for the world around it."""

MOST_STEPS_AT_ONCE: Final = 20_000
"""Turns of the loop without a moment passing: more is a busy loop."""
MOST_STEPS: Final = 400_000
"""Turns of the loop in one run, twenty times as many as any run has taken: more is a run that goes nowhere."""


class Stuck(Exception):
    """Nothing can ever happen again, though somebody waits; or something happens for ever without time passing."""


class VirtualLoop(asyncio.BaseEventLoop):
    """`time()` begins at 0 and moves when there is nothing else to do."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = self
        self._clock_resolution = 1e-9
        self._now_s = 0.0
        self._at_once = 0
        self.steps = 0
        self.most_steps = MOST_STEPS
        self.tasks: dict[int, set[asyncio.Task[Any]]] = {}
        """The unfinished tasks of each process that lives, and of the world."""
        self._dead: set[int] = set()
        self._graves: list[set[asyncio.Task[Any]]] = []
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]

    @classmethod
    def installed(cls) -> Self:
        """A new loop, as the one of this thread; to be disposed of."""
        loop = cls()
        asyncio.set_event_loop(loop)
        # What a killed process leaves behind complains when it is thrown away; that is what was meant.
        loop.set_exception_handler(lambda loop, context: None)
        return loop

    def time(self) -> float:
        """The virtual time, in seconds."""
        return self._now_s

    def select(self, timeout: float | None) -> list[Any]:
        """What a selector is asked: here, how the time passes."""
        if timeout is None:
            raise Stuck("nothing can happen any more")
        self.steps += 1
        if self.steps > self.most_steps:
            raise Stuck(f"after {self.steps} turns of the loop, at {self._now_s:.0f} s, there is no end")
        if timeout > 0:
            self._now_s += timeout
            self._at_once = 0
        else:
            self._at_once += 1
            if self._at_once > MOST_STEPS_AT_ONCE:
                busy = ", ".join(sorted({_name(handle) for handle in self._ready}))  # type: ignore[attr-defined]
                raise Stuck(f"{MOST_STEPS_AT_ONCE} turns of the loop at {self._now_s:.6f} s: {busy:.400}")
        return []

    def kill(self, process: int) -> None:
        """SIGKILL: nothing of the process ever runs again, not even a `finally`.

        What is on its way through the broker is no longer the process's.
        """
        self._dead.add(process)
        # Were they thrown away now, Python would unwind them.
        self._graves.append(self.tasks.pop(process, set()))
        for handle in (*self._ready, *self._scheduled):  # type: ignore[attr-defined]
            if handle._context.get(PROCESS, 0) == process and not _is_delivery(handle):
                handle.cancel()

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio has it; what a dead process wants is not done."""
        handle = super().call_soon(callback, *args, context=context)
        if self._dead and handle._context.get(PROCESS, 0) in self._dead:  # type: ignore[attr-defined]
            handle.cancel()
        return handle

    def unwind(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Cancel tasks and take one more turn, however many there were."""
        for task in tasks:
            task.cancel()
        self._at_once = 0
        self.most_steps = self.steps + MOST_STEPS
        self.call_soon(self.stop)
        self.run_forever()

    def _process_events(self, events: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody else can wake this loop."""

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, T],
        *,
        context: Context | None = None,
        **more: Any,
    ) -> asyncio.Task[T]:
        task = asyncio.Task(work, loop=loop, context=context, **more)
        owner = PROCESS.get() if context is None else context.get(PROCESS, 0)
        alive = self.tasks.setdefault(owner, set())
        alive.add(task)
        task.add_done_callback(alive.discard)
        return task


def _is_delivery(handle: asyncio.Handle) -> bool:
    return isinstance(getattr(handle._callback, "__self__", None), MemoryBus)  # type: ignore[attr-defined]


def _name(handle: asyncio.Handle) -> str:
    """Who is about to run."""
    owner = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
    return owner.get_name() if isinstance(owner, asyncio.Task) else repr(handle)


MOST_TURNS_TO_UNWIND: Final = 200
GRAVEYARD: Final[list[VirtualLoop]] = []
"""Loops with what was killed on them: thrown away with the process of Python that ran them, and no sooner."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on a new loop to the end; what is left over then is thrown away."""
    loop = VirtualLoop.installed()
    try:
        return loop.run_until_complete(main)
    finally:
        dispose(loop)


def dispose(loop: VirtualLoop) -> None:
    """Unwind what is left on the loop, and close it."""
    for _ in range(MOST_TURNS_TO_UNWIND):
        if not (left := set().union(*loop.tasks.values())):
            break
        loop.unwind(left)
    asyncio.set_event_loop(None)
    loop.close()
    GRAVEYARD.append(loop)
