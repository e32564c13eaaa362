"""The log that commands about the past read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aetherscale.gateways.cli.context import Context

if TYPE_CHECKING:
    from aetherscale.debugger.past import PastLog


@asynccontextmanager
async def opened_log(context: Context) -> AsyncIterator[PastLog]:
    """The log of the state directory; says where it is not known to be as it was written. Raises `Refused`."""
    from aetherscale.debugger.past import opened

    async with opened(context.settings.state_dir, context.program.kinds()) as log:
        if not log.is_proved:
            context.out.note("the log is large and was not verified first; to verify it: aetherscale log verify")
        yield log
