"""One QMP connection: commands with a time limit, events as they come, and the news that it broke.

The door to qemu.qmp.

Three quirks of that library are kept in here. Its listeners keep every event for ever, so events are taken out by a
filter that keeps none. It must be told to disconnect after a connection has broken, by one task only. And a broken
connection may surface as almost any exception of its reader.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct
from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError, Runstate
from qemu.qmp.message import Message

from aetherscale.bus.tasks import Tasks

log = logging.getLogger(__name__)

LINE_LIMIT_BYTES: Final = 1024 * 1024
CALL_LIMIT_S: Final = 5.0
START_LIMIT_S: Final = 40.0
"""For the greeting of a QEMU that has just been started: it makes its CPUs first, and 255 of them take their time."""

_QUEUE_POLL_S: Final = 0.02

_BROKEN = (QMPError, OSError, EOFError, ValueError, RecursionError)
"""The errors that a broken or lying peer makes qemu.qmp raise: a line that is too long or not UTF-8 is a ValueError."""

T = TypeVar("T")
OnEvent = Callable[[str, Mapping[str, Any]], None]
Ask = Callable[..., Awaitable[Any]]
"""Run a QMP command. Raises `Unresponsive`, `Rejected`."""
Give = Callable[[int, str], Awaitable[None]]
"""Hand a descriptor to QEMU, which knows it by this name from then on. Raises as `Ask`."""


class Unresponsive(Exception):
    """QEMU did not answer in time, or not in QMP."""


class Rejected(Exception):
    """QEMU understood the command and refused it."""


async def taken(connect: Callable[[str], socket.socket], name: str, limit_s: float | None = None) -> socket.socket:
    """A connection to a socket of QEMU, as soon as its queue has a place, within the time of any answer by default.

    A QEMU that is busy takes nothing out of its queue, where those that were given up meanwhile still have a place:
    `connect` raises `BlockingIOError` as long as it is full. Raises `Unresponsive`, and whatever else `connect` does.
    """
    limit_s = limit_s or CALL_LIMIT_S
    try:
        async with asyncio.timeout(limit_s):
            while True:
                try:
                    return connect(name)
                except BlockingIOError:
                    await asyncio.sleep(_QUEUE_POLL_S)
    except TimeoutError:
        raise Unresponsive(f"{name}: QEMU took no connection within {limit_s:g} s") from None


class RunState(Struct, frozen=True):
    """The answer to `query-status`."""

    status: str


class Uuid(Struct, frozen=True, rename={"uuid": "UUID"}):
    """The answer to `query-uuid`."""

    uuid: str


class CharDevice(Struct, frozen=True, rename="kebab"):
    """One of the answer to `query-chardev`."""

    label: str
    frontend_open: bool


class BlockDevice(Struct, frozen=True, rename="kebab"):
    """One of the answer to `query-block`."""

    io_status: str = "ok"


def shaped(answer: object, shape: type[T]) -> T:
    """An answer that has the shape it should have. Raises `Unresponsive` where it has not."""
    try:
        return msgspec.convert(answer, shape)
    except msgspec.ValidationError as error:
        log.warning("QMP: an answer is nonsense: %s", error)
        raise Unresponsive("an answer of it is nonsense; the node's log says which") from error


class Monitor:
    """A negotiated connection to QEMU. Made by `Monitor.connect`."""

    def __init__(self, connection: socket.socket, on_event: OnEvent) -> None:
        self._connection = connection
        self._client = QMPClient(readbuflen=LINE_LIMIT_BYTES)
        self._client.events.event_filter = self._take
        self._on_event = on_event
        self._closing = False
        self._giving = asyncio.Lock()

    @classmethod
    async def connect(
        cls,
        connection: socket.socket,
        tasks: Tasks,
        on_event: OnEvent,
        on_lost: Callable[[], None],
        greeting_limit_s: float | None = None,
    ) -> Monitor:
        """Wait for the greeting, no longer than for any answer unless a limit is given, and negotiate.

        Raises `Unresponsive`.

        `on_event` gets the name and the data of every event, in order; `on_lost` is called once if the connection
        breaks without `close`.
        """
        monitor = cls(connection, on_event)
        try:
            await monitor._negotiate(greeting_limit_s or CALL_LIMIT_S)
        except BaseException:
            # However it ended: QEMU serves one client at a time, and would go on serving this one.
            await monitor._end()
            connection.close()
            raise
        tasks.spawn(monitor._attend(on_lost), "QMP")
        return monitor

    async def _negotiate(self, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._client.connect(self._connection)
        except TimeoutError:
            raise Unresponsive(f"no greeting within {limit_s:g} s") from None
        except (ConnectError, *_BROKEN) as error:
            # What breaks while a cancelled attempt is being cleared away comes as it is.
            log.info("QMP: no session could be made: %r", error)
            raise Unresponsive("it does not speak QMP, or its connection broke") from error
        except AssertionError as error:
            # qemu.qmp takes for granted that a connection is there still when it has been made.
            raise Unresponsive("the connection was lost as soon as it was made") from error

    def send_descriptor(self, descriptor: int) -> None:
        """Hand over a descriptor, which the next `add-fd` or `getfd` takes. Raises `Unresponsive`."""
        try:
            # With a blank, as JSON may have anywhere. Nothing else is under way: every command awaits its answer.
            socket.send_fds(self._connection, [b" "], [descriptor])
        except OSError as error:
            raise Unresponsive(f"a descriptor could not be handed over: {error.strerror or error}") from error

    async def give(self, descriptor: int, name: str) -> None:
        """Hand over a descriptor, which QEMU knows by this name from then on. Raises `Unresponsive` and `Rejected`."""
        # One at a time, so that each is taken for what it is.
        async with self._giving:
            self.send_descriptor(descriptor)
            await self.execute("getfd", fdname=name)

    async def execute(self, command: str, **arguments: object) -> Any:
        """Run a command and return what it returns. Raises `Unresponsive` and `Rejected`."""
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise Unresponsive(f"{command} timed out after {CALL_LIMIT_S:g} s") from None
        except ExecuteError as error:
            raise Rejected(f"{command}: {error}") from error
        except QMPError as error:
            log.info("QMP: %s: %r", command, error)
            raise Unresponsive(f"{command}: the connection broke") from error

    def close(self) -> None:
        """Let go of the connection; what is still under way fails as `Unresponsive`."""
        self._closing = True
        self._shut_down()

    async def _attend(self, on_lost: Callable[[], None]) -> None:
        try:
            while self._client.runstate is Runstate.RUNNING:
                await self._client.runstate_changed()
        finally:
            try:
                await self._end()
            finally:
                if not self._closing:
                    on_lost()

    async def _end(self) -> None:
        """Let the tasks of qemu.qmp end, and take what they raise."""
        # With the socket shut down nothing is left to be flushed, which could take for ever.
        self._shut_down()
        try:
            await _to_the_end(self._client.disconnect())
        except _BROKEN as error:
            log.debug("QMP connection ended: %r", error)

    def _shut_down(self) -> None:
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            # The other side was faster.
            return

    def _take(self, event: Message) -> bool:
        data = event.get("data")
        self._on_event(str(event["event"]), data if isinstance(data, Mapping) else {})
        return False


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await short work that must not be left half done, also where the caller is cancelled."""
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as request:
            cancelled = request
    task.result()
    if cancelled is not None:
        raise cancelled
