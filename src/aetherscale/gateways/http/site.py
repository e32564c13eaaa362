"""What a connection needs of everything behind it."""

from __future__ import annotations

from typing import Protocol

from aetherscale.gateways.http.messages import Headers, Request, Response, Stream


class Match(Protocol):
    """A request that has found its route, and whose caller may use it."""

    @property
    def takes_body(self) -> bool:
        """Whether it may have a body."""
        ...


class Site(Protocol):
    """Everything behind the connections."""

    def match(self, request: Request) -> Match:
        """Find the route. Raises `HttpError`."""
        ...

    async def answer(self, match: Match, request: Request) -> Response | Stream:
        """The answer. Never raises but when it is cancelled."""
        ...

    def headers(self) -> Headers:
        """Headers of every response."""
        ...
