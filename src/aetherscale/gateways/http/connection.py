"""One connection: HTTP/1.1 by h11, a bound on everything that the other side may do, and no more than that.

    bytes ─▶ h11 ─▶ head in time, in size? ─▶ who, which route? ─▶ body in time, in size? ─▶ answer ─▶ h11 ─▶ bytes
                          └────────────────────────┴───────────────────────┴─ problem, and the end of the connection

Requests of one connection are answered one after the other. A caller that closes its side has gone: whatever waits on
its behalf ends, and what was accepted goes on. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import Final, cast

import h11
from msgspec.structs import replace

from aetherscale.bus.tasks import Tasks
from aetherscale.gateways.http import problems
from aetherscale.gateways.http.messages import Caller, Headers, Request, Response, Stream
from aetherscale.gateways.http.problems import HttpError
from aetherscale.gateways.http.site import Match, Site
from aetherscale.kernel.wire import MAX_BODY_BYTES

MAX_HEADER_BYTES: Final = 16 * 1024
"""A request with a larger head is refused (431), and the connection ends."""
HEADER_S: Final = 10.0
"""How long the head of a request may take from its first byte, and a new connection to send one."""
BODY_S: Final = 30.0
"""How long the body of a request may take."""
IDLE_S: Final = 75.0
"""How long a connection may be silent between two requests."""
WRITE_S: Final = 60.0
"""How long a caller may take nothing of its answer, before it has gone."""
LINGER_S: Final = 2.0
"""How long what a refused request still sends is read and thrown away."""
LINGER_BYTES: Final = 1024 * 1024
"""How much of it."""
READ_BYTES: Final = 16 * 1024
PART_BYTES: Final = 64 * 1024
"""What is written at once; more waits until the caller has taken it."""
MAX_AHEAD_BYTES: Final = 64 * 1024
"""What a connection may send ahead while a request is answered; then nothing is read until that is over."""
_NO_BODY: Final = frozenset({204, 304})
_ENDING: Final = frozenset({"header-too-large", "request-timeout"})
_VERSIONS: Final = (b"1.0", b"1.1")


class Closed(Exception):
    """The other side has gone, or was too slow to be served."""


class Connection:
    """One connection, from its first byte to its end. `admit` says who it is, by the headers of each request."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        site: Site,
        admit: Callable[[dict[str, str], str], Caller],
    ) -> None:
        self._reader, self._writer, self._site, self._admit = reader, writer, site, admit
        self._tasks = Tasks("http connection")
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        self._ahead = b""
        self._method = ""
        self._is_first = True
        self._begun = False
        """Whether a response has been begun that is not over."""
        self.is_stopping = False
        writer.transport.set_write_buffer_limits(high=PART_BYTES)

    async def run(self) -> None:
        """Serve it to its end."""
        try:
            while await self._serve_one():
                self._h11.start_next_cycle()
        except (Closed, ConnectionError, h11.LocalProtocolError):
            pass
        except asyncio.CancelledError:
            if self.is_stopping and self._may_respond() and not self._is_waiting():
                self._write_whole(problems.problem(problems.STOPPING), "")
            raise
        finally:
            await self._tasks.close()
            self._end()

    def _is_waiting(self) -> bool:
        """Whether it is between two requests."""
        return self._h11.their_state is h11.IDLE

    def _may_respond(self) -> bool:
        return not self._begun and self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE)

    async def _serve_one(self) -> bool:
        """Serve the next request; whether there may be another one."""
        self._method = ""
        try:
            head = await self._head()
            if head is None:
                return False
            self._method = head.method.decode("ascii")
            request = self._request(head)
            match = self._site.match(request)
            request = replace(request, body=await self._body(request, takes=match.takes_body))
        except h11.RemoteProtocolError as wrong:
            return await self._refuse(_of_protocol(wrong))
        except HttpError as wrong:
            return await self._refuse(wrong)
        await self._while_there(lambda: self._answer(match, request))
        return self._goes_on()

    def _goes_on(self) -> bool:
        return self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE

    # --- reading -------------------------------------------------------------------------------------------------

    async def _head(self) -> h11.Request | None:
        """The next head; None where the other side has ended tidily."""
        limit_s = HEADER_S if self._is_first else IDLE_S
        self._is_first = False
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        if self._ahead:
            self._h11.receive_data(self._ahead)
            self._ahead = b""
        has_begun = bool(self._h11.trailing_data[0])
        if has_begun:
            until = loop.time() + HEADER_S
        while True:
            event = self._h11.next_event()
            if isinstance(event, h11.Request):
                return event
            if event is not h11.NEED_DATA:
                return None
            try:
                async with asyncio.timeout_at(until):
                    data = await self._reader.read(READ_BYTES)
            except TimeoutError:
                if has_begun:
                    raise HttpError("request-timeout", f"the head took more than {HEADER_S:g} s") from None
                return None
            if data and not has_begun:
                has_begun, until = True, loop.time() + HEADER_S
            self._h11.receive_data(data)

    def _request(self, head: h11.Request) -> Request:
        """Raises `HttpError` for a head that is too large, says two lengths, or whose caller may not ask at all."""
        if head.http_version not in _VERSIONS:
            version = head.http_version.decode("ascii", "replace")
            raise HttpError("bad-request", f"this is HTTP/{version}, and HTTP/1.1 is expected")
        size = len(head.target) + sum(len(name) + len(value) + 4 for name, value in head.headers)
        if size > MAX_HEADER_BYTES:
            raise HttpError("header-too-large", f"the head has {size} bytes, expected at most {MAX_HEADER_BYTES}")
        headers: dict[str, str] = {}
        for raw_name, raw_value in head.headers:
            name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        target = head.target.decode("ascii")
        if {"transfer-encoding", "content-length"} <= headers.keys():
            raise HttpError("length-required", "the request has both Transfer-Encoding and Content-Length")
        return Request(head.method.decode("ascii"), target, headers, self._admit(headers, target))

    async def _body(self, request: Request, *, takes: bool) -> bytes:
        length = request.headers.get("content-length", "0")
        if not takes and (length != "0" or "transfer-encoding" in request.headers):
            raise HttpError("bad-request", f"{request.method} {request.target[:200]} takes no body", field="body")
        if int(length) > MAX_BODY_BYTES:
            raise _too_large(length)
        body = b""
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    event = self._h11.next_event()
                    if isinstance(event, h11.Data):
                        body += bytes(event.data)
                        if len(body) > MAX_BODY_BYTES:
                            raise _too_large(f"more than {MAX_BODY_BYTES}")
                    elif event is h11.NEED_DATA:
                        if self._h11.they_are_waiting_for_100_continue:
                            await self._write(self._sent(h11.InformationalResponse(status_code=100, headers=[])))
                        data = await self._reader.read(READ_BYTES)
                        if not data:
                            raise Closed
                        self._h11.receive_data(data)
                    else:
                        return body
        except TimeoutError:
            raise HttpError("request-timeout", f"the body took more than {BODY_S:g} s") from None

    async def _while_there(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do some work for as long as the other side is there."""

        async def do() -> None:
            with suppress(Closed, ConnectionError, h11.LocalProtocolError):
                await work()

        working = self._tasks.spawn(do(), "answer")
        watching = self._tasks.spawn(self._gone(), "watch")
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Closed
        finally:
            working.cancel()
            watching.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _gone(self) -> None:
        """Returns when the other side has closed its own; keeps what it sends ahead."""
        while len(self._ahead) < MAX_AHEAD_BYTES:
            try:
                data = await self._reader.read(READ_BYTES)
            except ConnectionError:
                return
            if not data:
                return
            self._ahead += data
        await asyncio.get_running_loop().create_future()

    # --- writing -------------------------------------------------------------------------------------------------

    async def _answer(self, match: Match, request: Request) -> None:
        answer = await self._site.answer(match, request)
        if isinstance(answer, Stream):
            await self._send_stream(answer, request.method)
        else:
            await self._send(answer, request.method)

    async def _refuse(self, wrong: HttpError) -> bool:
        """Say what is wrong; whether another request may follow. Where more of this one may come, none may."""
        if not self._may_respond():
            return False
        has_more = not self._is_complete() or wrong.word in _ENDING
        if has_more:
            wrong.headers = (*wrong.headers, ("connection", "close"))
        await self._send(wrong.response, self._method)
        if has_more:
            await linger(self._reader, self._writer)
        return not has_more and self._goes_on()

    def _is_complete(self) -> bool:
        """Whether all of the request is there: it has no body, or a short one that has been read."""
        with suppress(h11.RemoteProtocolError):
            while self._h11.their_state is h11.SEND_BODY:
                if self._h11.next_event() is h11.NEED_DATA:
                    return False
        return self._h11.their_state is h11.DONE

    async def _send(self, response: Response, method: str) -> None:
        self._begun = True
        await self._write(self._head_of(response, method))
        if method != "HEAD" and response.status not in _NO_BODY:
            for start in range(0, len(response.body), PART_BYTES):
                await self._write(self._sent(h11.Data(data=response.body[start : start + PART_BYTES])))
        await self._write(self._sent(h11.EndOfMessage()))
        self._begun = False

    def _write_whole(self, response: Response, method: str) -> None:
        """As `_send`, of a short one, without waiting for anything."""
        with suppress(h11.LocalProtocolError):
            self._writer.write(self._head_of(response, method))
            self._writer.write(self._sent(h11.Data(data=response.body)) + self._sent(h11.EndOfMessage()))

    def _head_of(self, response: Response, method: str) -> bytes:
        headers = self._with_ours(response.headers)
        if response.status not in _NO_BODY:
            headers += [("content-type", response.media_type), ("content-length", str(len(response.body)))]
        return self._sent(_head(response.status, headers))

    def _with_ours(self, own: Headers) -> list[tuple[str, str]]:
        """The headers of one response: its own, and those of every response that it does not have itself."""
        names = {name for name, _ in own}
        return [*(each for each in self._site.headers() if each[0] not in names), *own]

    async def _send_stream(self, stream: Stream, method: str) -> None:
        self._begun = True
        headers = self._with_ours((("content-type", stream.media_type), *stream.headers))
        async with aclosing(stream.parts):  # type: ignore[type-var]
            await self._write(self._sent(_head(stream.status, headers)))
            if method != "HEAD":
                async for part in stream.parts:
                    await self._write(self._sent(h11.Data(data=part)))
        await self._write(self._sent(h11.EndOfMessage()))
        self._begun = False

    def _sent(self, event: h11.Event) -> bytes:
        return cast(bytes, self._h11.send(event)) or b""

    async def _write(self, data: bytes) -> None:
        """Raises `Closed` where the other side takes nothing for too long."""
        if not data:
            return
        self._writer.write(data)
        try:
            async with asyncio.timeout(WRITE_S):
                await self._writer.drain()
        except TimeoutError:
            self._writer.transport.abort()
            raise Closed from None

    def let_go(self) -> None:
        """End it now, whatever the other side has not taken yet."""
        if self._writer.transport.get_write_buffer_size():
            self._writer.transport.abort()

    def _end(self) -> None:
        if self._begun:
            # Half of an answer is not to look like a whole one.
            self._writer.transport.abort()
        else:
            self._writer.close()


async def linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let the other side read why, while it may still be sending: a reset would take the answer away from it."""
    left_bytes = LINGER_BYTES
    with suppress(TimeoutError, ConnectionError, NotImplementedError, OSError):
        writer.write_eof()
        async with asyncio.timeout(LINGER_S):
            while left_bytes > 0 and (data := await reader.read(READ_BYTES)):
                left_bytes -= len(data)


def _head(status: int, headers: list[tuple[str, str]]) -> h11.Response:
    return h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase)


def _of_protocol(wrong: h11.RemoteProtocolError) -> HttpError:
    if wrong.error_status_hint == 431:
        return HttpError("header-too-large", f"the head has more than {MAX_HEADER_BYTES} bytes")
    if wrong.error_status_hint == 501:
        return HttpError("not-implemented", f"not in this version: {str(wrong)[:200]}")
    return HttpError("bad-request", f"this is not HTTP/1.1: {str(wrong)[:200]}")


def _too_large(got: str) -> HttpError:
    return HttpError("too-large", f"body: got {got[:40]} bytes, expected at most {MAX_BODY_BYTES}", field="body")
