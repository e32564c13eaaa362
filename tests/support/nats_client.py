"""A plain NATS client for tests, nats-py's, that leaves no connection open."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from nats.aio.client import Client


class TidyClient(Client):
    """nats-py's client. It closes what nats-py leaves open: a connection whose server hung up before it had greeted.

    Such a one is found by the garbage collector in a later test, which fails of it.
    """

    @classmethod
    async def connected(cls, url: str, **options: Any) -> TidyClient:
        """A client that has connected. Raises what nats-py raises."""
        client = cls()
        try:
            await client.connect(url, **options)
        except BaseException:
            await client.end()
            raise
        return client

    async def end(self) -> None:
        """Close, whatever has become of the connection."""
        # The broker may have gone before it took the last bytes; Python 3.12 and later may say so by a TypeError.
        with suppress(OSError, TypeError):
            await self.close()
