"""The log that commands about the past read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from aetherscale.gateways.cli.context import Context

if TYPE_CHECKING:
    from aetherscale.debugger.past import PastLog
    from aetherscale.gateways.cli.output import Progress

NOW_SHOWN = "the present is shown"


@asynccontextmanager
async def opened_log(context: Context) -> AsyncIterator[PastLog]:
    """The log of the state directory; says where it is not known to be as it was written. Raises `Refused`."""
    from aetherscale.debugger.past import opened

    with ExitStack() as stack:
        told: list[Progress] = []

        def report(done: int, total: int) -> None:
            if not told:
                told.append(stack.enter_context(context.out.progress("past")))
            told[0].step("making keyframes", f"{done} of {total} events")

        async with opened(context.settings.state_dir, context.program.kinds(), report) as log:
            if not log.is_proved:
                context.suggest("the log is large and was not verified first; to verify it: aetherscale log verify")
            yield log


async def position(context: Context, log: PastLog, moment: str | None, instead: str = NOW_SHOWN) -> int:
    """The position that a moment means; the head without one. Says so where it is still to come. Raises `Refused`."""
    found = await log.position(moment, context.program.now_us())
    tell_future(context, moment, instead)
    return found


def tell_future(context: Context, moment: str | None, instead: str) -> None:
    """Say of a moment that is still to come what is shown in its place; nothing of any other, or of what is none."""
    from aetherscale.kernel.moments import from_text

    now_us = context.program.now_us()
    try:
        is_future = moment is not None and not moment.isdigit() and from_text(moment, now_us) > now_us
    except ValueError:
        return
    if is_future:
        context.out.caution(f"{moment} is in the future; {instead}")
