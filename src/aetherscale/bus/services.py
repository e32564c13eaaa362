"""The node's components as NATS services, so that `nats micro ls|info|stats` and its like list them.

Answers `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`, each for all, by name, and by name and id. Source: ADR-32 of the NATS
architecture. Only the answers are here; the requests themselves come in through `ingress.py`, which counts them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from aetherscale.bus.bus import Bus, BusUnavailable, Handler, Incoming, Subscription, TooLarge
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel import subjects
from aetherscale.kernel.times import to_rfc3339

PREFIX: Final = "$SRV"
SCHEMA: Final = "io.nats.micro.v1."
MAX_ANSWERS: Final = 256
"""Answers under way at one time; a question beyond is dropped, as any core message may be."""


class Service(Struct, frozen=True):
    """The service of one component. Clients leave out one without a description."""

    component: str
    description: str
    tasks: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name among all services of the broker."""
        return f"aether-{self.component}"


class _Counted(Struct):
    num_requests: int = 0
    num_errors: int = 0
    processing_time_ns: int = 0
    last_error: str = ""


class Services:
    """All services of one node. `count` is for the ingress."""

    def __init__(
        self, bus: Bus, services: Sequence[Service], *, node: str, instance: str, version: str, started_us: int
    ) -> None:
        self._bus, self._services = bus, services
        self._node, self._instance, self._version = node, instance, version
        self._started = to_rfc3339(started_us)
        self._counted = {(service.component, task): _Counted() for service in services for task in service.tasks}
        self._tasks = Tasks("services")
        self._subscriptions: list[Subscription] = []

    def count(self, component: str, task: str, seconds: float, error: str) -> None:
        """Count one call; one of an unknown task is not counted."""
        counted = self._counted.get((component, task))
        if counted is None:
            return
        counted.num_requests += 1
        counted.processing_time_ns += int(seconds * 1e9)
        if error:
            counted.num_errors += 1
            counted.last_error = error

    def figures(self) -> Iterator[tuple[str, str, int, int, float]]:
        """(component, task, requests, errors, seconds) of every task that was asked for since the start."""
        for (component, task), counted in self._counted.items():
            if counted.num_requests:
                yield component, task, counted.num_requests, counted.num_errors, counted.processing_time_ns / 1e9

    async def start(self) -> None:
        """Answer from now on."""
        answers = {"PING": self._ping, "INFO": self._info, "STATS": self._stats}
        wanted: list[tuple[str, Handler]] = []
        for verb, answer in answers.items():
            wanted.append((f"{PREFIX}.{verb}", self._answering(answer, self._services)))
            for service in self._services:
                handler = self._answering(answer, [service])
                wanted.append((f"{PREFIX}.{verb}.{service.name}", handler))
                wanted.append((f"{PREFIX}.{verb}.{service.name}.{self._instance}", handler))
        self._subscriptions += await asyncio.gather(*(self._bus.listen(subject, "", take) for subject, take in wanted))

    async def close(self) -> None:
        """Answer no more."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        await self._tasks.close()

    def _answering(self, answer: Callable[[Service], dict[str, Any]], services: Sequence[Service]) -> Handler:
        def take(incoming: Incoming) -> None:
            if subjects.may_answer(incoming.reply, "") and len(self._tasks) < MAX_ANSWERS:
                self._tasks.spawn(self._send(incoming.reply, [answer(service) for service in services]), "answer")

        return take

    async def _send(self, reply: str, answers: list[dict[str, Any]]) -> None:
        try:
            for answer in answers:
                await self._bus.publish(reply, msgspec.json.encode(answer))
        except (BusUnavailable, TooLarge):
            return

    def _identity(self, service: Service, kind: str) -> dict[str, Any]:
        return {
            "type": f"{SCHEMA}{kind}_response",
            "name": service.name,
            "id": self._instance,
            "version": self._version,
            "metadata": {"node": self._node},
        }

    def _ping(self, service: Service) -> dict[str, Any]:
        return self._identity(service, "ping")

    def _info(self, service: Service) -> dict[str, Any]:
        return {
            **self._identity(service, "info"),
            "description": service.description,
            "endpoints": [{**_endpoint(service, task), "metadata": {}} for task in service.tasks],
        }

    def _stats(self, service: Service) -> dict[str, Any]:
        return {
            **self._identity(service, "stats"),
            "started": self._started,
            "endpoints": [
                {**_endpoint(service, task), **_figures(self._counted[service.component, task])}
                for task in service.tasks
            ],
        }


def _endpoint(service: Service, task: str) -> dict[str, Any]:
    subject = subjects.every_tenants_command(service.component, task)
    return {"name": task, "subject": subject, "queue_group": subjects.QUEUE}


def _figures(counted: _Counted) -> dict[str, Any]:
    return {
        "num_requests": counted.num_requests,
        "num_errors": counted.num_errors,
        "last_error": counted.last_error,
        "processing_time": counted.processing_time_ns,
        "average_processing_time": counted.processing_time_ns // max(1, counted.num_requests),
    }
