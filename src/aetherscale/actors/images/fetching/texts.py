"""A small text from a server, such as a file of checksums: whole, bounded, and into memory."""

from __future__ import annotations

import asyncio
import urllib.error
from pathlib import Path
from typing import Final

from aetherscale.actors.images.fetching import web
from aetherscale.actors.images.fetching.download import plain, refusal
from aetherscale.actors.images.fetching.transfer import CHUNK_BYTES, Limits, Transfer
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.threads import until_stopped

DEADLINE_S: Final = 60.0
"""For all of it: a server that sends it byte by byte is given up."""

_NOWHERE: Final = Path("/dev/null")


async def fetch_text(url: str, most_bytes: int, limits: Limits) -> bytes:
    """What is at `url`, an http or https URL. Cancelling this ends the transfer before it returns. Raises Fault."""
    transfer = Transfer(_NOWHERE, most_bytes, lambda done, total: None)
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await until_stopped(lambda: _read(url, transfer, most_bytes, limits), transfer.stop)
    except TimeoutError:
        raise Fault(f"{url} was not read within {DEADLINE_S:g} s", "try again later", retryable=True) from None


def _read(url: str, transfer: Transfer, most_bytes: int, limits: Limits) -> bytes:
    try:
        response = web.get(url, {"Accept-Encoding": "identity"}, transfer, limits)
        with response:
            got = bytearray()
            while piece := web.read(response, min(CHUNK_BYTES, most_bytes + 1 - len(got)), limits):
                transfer.go_on()
                got += piece
                if len(got) > most_bytes:
                    raise Fault(f"{url} has more than {most_bytes} bytes", "look at the address", retryable=False)
            transfer.go_on()
            if response.length:
                raise web.ServerError(f"it ended {response.length} bytes too early")
            return bytes(got)
    except urllib.error.HTTPError as error:
        with error:
            refused = refusal(error)
        raise Fault(f"{url}: {refused.reason}", refused.remedy, retryable=refused.retryable) from error
    except web.NoAddress as error:
        raise Fault(f"this is no address: {error}", "look at the address", retryable=False) from error
    except web.ServerError as error:
        transfer.go_on()
        raise Fault(
            f"{url}: the connection failed: {plain(error)}", error.remedy or "try again later", retryable=True
        ) from error
    finally:
        transfer.close()
