"""The answer to `vm-logs`: what a guest wrote, as text or as it is."""

from __future__ import annotations

import base64
import codecs
from collections.abc import AsyncIterator

from aetherscale.actors.compute.driver import ComputeDriver, LogRange
from aetherscale.actors.compute.model.commands import LogsOptions
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.replies import Chunk, item, status
from aetherscale.kernel.times import from_rfc3339


async def told(driver: ComputeDriver, vm_id: str, options: LogsOptions) -> AsyncIterator[Chunk]:
    """The chunks, but for the result. Raises `Refused`."""
    wanted = _range(options)
    # A character may be in two pieces.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    is_begun = False
    async for data in driver.logs(vm_id, wanted, follow=options.follow):
        if not is_begun and (options.since is not None or options.since_s is not None):
            yield status("since", vm_id=vm_id, clock_went_back=wanted.went_back, has_no_times=wanted.has_no_times)
        is_begun = True
        if options.raw:
            yield item({"data": base64.b64encode(data).decode()})
        elif text := decoder.decode(data):
            yield item({"text": text})
    if rest := decoder.decode(b"", final=True):
        yield item({"text": rest})


def _range(options: LogsOptions) -> LogRange:
    if options.since is None:
        return LogRange(options.tail_bytes, options.lines, ago_s=options.since_s)
    try:
        return LogRange(options.tail_bytes, options.lines, from_rfc3339(options.since))
    except (ValueError, OverflowError):
        raise Refused(
            Reason.BAD_REQUEST,
            f"vm-logs: got {options.since!r}, expected a time like 2026-01-31T12:00:00Z",
            field="since",
        ) from None
