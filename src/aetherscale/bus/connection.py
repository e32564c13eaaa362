"""One connection to a NATS server, from its beginning to its end, through nats-py.

nats-py connects, authenticates, keeps alive and flushes. It neither reconnects here nor parses: one subject that is not
UTF-8, which any client can publish, would end its read loop without a word. This is the only module that leans on what
is private to nats-py, whose version is pinned for that; see docs/decisions/0020.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import nats.errors
from nats.aio.client import Client
from nats.protocol.parser import Parser as NatsParser

from aetherscale.bus import credentials, protocol
from aetherscale.bus.bus import Incoming
from aetherscale.bus.endpoint import Endpoint

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 2
PING_INTERVAL_S: Final = 10
ROUNDTRIP_TIMEOUT_S: Final = 10


class _Reader(NatsParser):
    """Stands where nats-py has its parser: reads with ours, and leaves to nats-py what is not a message."""

    def __init__(self, client: Connection, deliver: Callable[[int, Incoming], None]) -> None:
        super().__init__(client)
        self._deliver = deliver

    def reset(self) -> None:
        super().reset()
        self._parser = protocol.Parser()

    async def parse(self, data: bytes = b"") -> None:
        try:
            frames = self._parser.feed(data)
        except protocol.ProtocolError as broken:
            raise nats.errors.ProtocolError from broken
        for frame in frames:
            if isinstance(frame, protocol.Delivery):
                self._deliver(frame.sid, frame.incoming)
            else:
                await self.nc.control(frame)
        # nats-py goes on as long as bytes are here; what they lead to has to have its turn too.
        await asyncio.sleep(0)


class Connection(Client):
    """One connection from its beginning to its end; it never reconnects."""

    def __init__(self, deliver: Callable[[int, Incoming], None]) -> None:
        super().__init__()
        self.lost = asyncio.Event()
        self._why: Exception | None = None
        self.said = ""
        """The last error that the server sent."""
        self._ps = _Reader(self, deliver)

    async def open(self, servers: list[str], endpoint: Endpoint, name: str) -> None:
        """Connect to one of the servers, or raise OSError, nats.errors.Error or TimeoutError."""
        proof = self._proof(endpoint)
        try:
            await self.connect(
                servers,
                name=name,
                user=endpoint.user or None,
                password=endpoint.password or None,
                token=endpoint.token or None,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=CONNECT_TIMEOUT_S,
                ping_interval=PING_INTERVAL_S,
                pending_size=0,
                error_cb=self._on_error,
                **proof,
            )
        except BaseException as failure:
            await self.end()
            if isinstance(failure, nats.errors.NoServersError) and self._why is not None:
                raise self._why from None
            raise
        transport = self._transport
        assert transport is not None, "nats-py has connected"

        def write_all(payload: list[bytes]) -> None:
            try:
                transport.write(b"".join(payload))
            except RuntimeError as closed:
                # So uvloop says of a connection that was lost; nats-py knows what an OSError means.
                raise ConnectionResetError("the connection is closed") from closed

        # From Python 3.12 on, asyncio's own `writelines` on a connection that has just been lost watches its descriptor
        # again. The next connection gets that number, and neither its messages nor its end are heard.
        transport.writelines = write_all  # type: ignore[method-assign]

    def _proof(self, endpoint: Endpoint) -> dict[str, Any]:
        """The options of nats-py for credentials in files. Raises ValueError."""
        if not (endpoint.creds or endpoint.nkey):
            return {}
        credentials.check(endpoint.creds, endpoint.nkey)
        known: dict[str, Any] = {}

        def sign(nonce: str) -> bytes:
            known.update(credentials.answer(endpoint.creds, endpoint.nkey, nonce))
            self._public_nkey = known.get("nkey")
            signature: str = known["sig"]
            return signature.encode()

        def jwt() -> bytes:
            text: str = known["jwt"]
            return text.encode()

        return {"signature_cb": sign, **({"user_jwt_cb": jwt} if endpoint.creds else {})}

    async def end(self) -> None:
        """Close, also where a cancellation has left nats-py half closed."""
        await self.close()
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]
            with suppress(OSError):
                await self._transport.wait_closed()  # type: ignore[no-untyped-call]

    def send(self, data: bytes) -> int:
        """Hand bytes to the flusher, in order; says how many it has not sent yet."""
        self._pending.append(data)
        self._pending_data_size += len(data)
        if self._flush_queue is not None and self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())
        return self._pending_data_size

    async def roundtrip(self) -> None:
        """Wait until the server has all that was sent before. Raises TimeoutError and nats.errors.Error.

        nats-py's own ping overtakes what the flusher has not sent yet, and its `flush` waits in a way that can swallow
        the cancellation of its caller.
        """
        ponged = asyncio.get_running_loop().create_future()
        if self.lost.is_set():
            raise nats.errors.ConnectionClosedError
        self._pongs.append(ponged)
        self.send(protocol.PING)
        async with asyncio.timeout(ROUNDTRIP_TIMEOUT_S):
            await ponged

    async def control(self, frame: protocol.Control) -> None:
        """The server's messages about the connection."""
        match frame.verb:
            case "PING":
                await self._process_ping()
            case "PONG":
                try:
                    await self._process_pong()
                except asyncio.InvalidStateError:
                    log.debug("a pong came after its waiter had given up")
            case "-ERR":
                self.said = frame.argument
                log.warning("NATS: %s", protocol.meaning(frame.argument))
                await self._process_err(frame.argument.lower())
            case "INFO":
                await self._process_info(frame.info())
            case _:
                pass

    async def _on_error(self, error: Exception) -> None:
        self._why = error
        log.debug("nats: %r", error)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # nats-py does not report a close in which the last bytes could not be written.
        try:
            await super()._close(status, do_cbs)
        except OSError as failure:
            log.debug("nats: %r while closing", failure)
        finally:
            self.lost.set()
            for waiter in self._pongs:
                if not waiter.done():
                    waiter.set_exception(nats.errors.ConnectionClosedError())
                    waiter.exception()  # no task waits for the answer to a ping of nats-py's own
