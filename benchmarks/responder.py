"""A bare responder of nats-py in a process of its own: `python -m benchmarks.responder URL USER PASSWORD`.

It answers on `bench.echo` with one message, and on `bench.list` with as many as a list of 1,000 VMs has.
"""

from __future__ import annotations

import asyncio
import sys

import nats
from nats.aio.msg import Msg

from benchmarks import loops

ITEMS = 1000


async def main(url: str, user: str, password: str, item_bytes: int) -> None:
    """Answer until killed."""
    client = await nats.connect(url, user=user or None, password=password or None)
    body = b"x" * item_bytes
    headers = {"Aether-Node": "bench1"}

    async def echo(message: Msg) -> None:
        await client.publish(message.reply, body)

    async def stream(message: Msg) -> None:
        for _ in range(ITEMS):
            await client.publish(message.reply, body, headers=headers)
        await client.publish(message.reply, b"")

    await client.subscribe("bench.echo", cb=echo)
    await client.subscribe("bench.list", cb=stream)
    await client.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    loops.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
