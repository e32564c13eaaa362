"""A plain NATS client for tests, nats-py's, that leaves no connection open."""

from __future__ import annotations

import asyncio
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
        try:
            await self.close()
        except (OSError, TypeError):
            pass  # The broker went before it took the last bytes; Python 3.12 and later may say so by a TypeError.
        except asyncio.CancelledError:
            # nats-py ends its own attempt to connect again, and with it the wait for the end of the socket, which is
            # one for both: a cancellation of its own, unless this task has been cancelled.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
