"""The way to a node: finds its NATS server, asks, and turns what goes wrong into failures that say what to do."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aetherscale import service
from aetherscale.bus import blocking, rollcall
from aetherscale.bus.bus import BusUnavailable, Incoming, NoResponders, NotAuthorized
from aetherscale.bus.chunks import BadAnswer, Reply
from aetherscale.bus.endpoint import FILE_NAME, Endpoint, outside, parse_endpoint, read_endpoint
from aetherscale.bus.refusals import words_of
from aetherscale.components import identities
from aetherscale.gateways.cli.failures import NO_NODE, Failure, bad_usage
from aetherscale.gateways.cli.place import is_service, start, told_in
from aetherscale.kernel import subjects
from aetherscale.kernel.names import ambiguous, is_short_id, too_short

if TYPE_CHECKING:
    from collections.abc import Generator

    from aetherscale.bus.beats import Beat
    from aetherscale.bus.blocking import Connection
    from aetherscale.gateways.cli.program import Program
    from aetherscale.kernel.identity import Identity
    from aetherscale.settings import Settings

ANSWER_S: Final = 10.0
"""How soon a node says its first word, unless the task is one that says nothing until it is done."""
SILENCE_S: Final = 75.0
"""A node that works says so every 30 s; one that says nothing for this long is gone."""
DEADLINE_MARGIN_S: Final = 5.0
"""By how much the node's patience is longer than ours, so that it is we who say that the wait is over."""
BACK_S: Final = 10.0
"""How long to try for a connection that was lost on the way: a node starts its NATS server again when it ends."""
BACK_STEP_S: Final = 0.2
TIMEOUT: Final = "Aether-Timeout-Ms"
CLAIMED: Final = "Aether-Claimed-User"
SHORT_IDS: Final = {each.reference: each for each in identities()}
SHORT_ID_LISTS: Final = {"groups": SHORT_IDS["group"], "virtual-network": SHORT_IDS["network"]}
LOOK: Final = "; ".join(f"aetherscale {words_of(each.kind)} list" for each in identities())

_UNFIT = re.compile(r"[^A-Za-z0-9._@+-]")

Chunk = dict[str, Any]


class Client:
    """One program's way to the nodes; connects with the first request."""

    def __init__(self, settings: Settings, program: Program) -> None:
        self._settings = settings
        self._program = program
        self._connection: Connection | None = None

    def ask(
        self,
        component: str,
        task: str,
        options: Mapping[str, Any],
        *,
        node: str = "",
        timeout_s: float | None,
        answer_s: float = ANSWER_S,
        command: bool = False,
    ) -> Generator[Chunk]:
        """The chunks of a task's reply, the result among them.

        Raises `Failure` for an error chunk and where no node answers within `answer_s`; TimeoutError where `timeout_s`
        runs out while the work goes on. A `command` gets a key of its own and is sent once more, under the same key,
        where the connection is lost on the way; anything else only where nothing of its reply has come.
        """
        tenant = self._settings.tenant
        options = self.whole(options)
        if node:
            subject = subjects.node_command(tenant, node, component, task)
        else:
            subject = subjects.command(tenant, component, task)
        return self._stream(subject, _encoded(options, task), node, timeout_s, answer_s, command=command)

    def whole(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Options in which the beginning of an id, as lists show it, has become the id. Raises `Failure`."""
        for field, names in SHORT_IDS.items():
            if isinstance(reference := options.get(field), str):
                options = {**options, field: self._whole(reference, field, names)}
        for field, names in SHORT_ID_LISTS.items():
            if isinstance(references := options.get(field), list):
                options = {**options, field: [self._whole(each, field, names) for each in references]}
        return options

    def _whole(self, reference: str, field: str, names: Identity) -> str:
        """A reference; where it is the beginning of an id, that id. Raises `Failure`."""
        if refused := too_short(reference, field):
            raise Failure.of_refusal(refused)
        if not is_short_id(reference):
            return reference
        views = [item[names.kind] for item in self.items(names.component, names.list_task, {"all": True})]
        found = [view for view in views if view["id"].startswith(reference)]
        if len(found) > 1:
            raise Failure.of_refusal(ambiguous(reference, [(view["id"], view["name"]) for view in found], field))
        if not found:
            no_such = f"no {names.noun} has an id that begins with {reference!r}"
            look = f"aetherscale {words_of(names.kind)} list --all"
            raise Failure(404, no_such, hint=look, details={"field": field})
        return str(found[0]["id"])

    def first_version(
        self, component: str, task: str, options: Mapping[str, Any], *, timeout_s: float, command: bool
    ) -> Generator[Chunk]:
        """The same by the first version's message."""
        body = _encoded({"component": component, "task": task, "options": options}, task)
        return self._stream(subjects.rpc(self._settings.tenant), body, "", timeout_s, ANSWER_S, command=command)

    def items(
        self,
        component: str,
        task: str,
        options: Mapping[str, Any],
        *,
        node: str = "",
        timeout_s: float = ANSWER_S,
    ) -> list[Chunk]:
        """All items of a list."""
        chunks = self._all(self.ask(component, task, options, node=node, timeout_s=timeout_s, answer_s=timeout_s))
        return [chunk for chunk in chunks if chunk["type"] == "item"]

    def result(
        self,
        component: str,
        task: str,
        options: Mapping[str, Any],
        *,
        node: str = "",
        timeout_s: float = ANSWER_S,
    ) -> Chunk:
        """The result of a task that changes nothing."""
        return self._all(self.ask(component, task, options, node=node, timeout_s=timeout_s, answer_s=timeout_s))[-1]

    def nodes(self) -> list[Beat]:
        """The reports of all nodes, by name. Raises `Failure` (status 4) where none answers."""
        connection = self.connection
        try:
            found = rollcall.call(connection)
        except BusUnavailable as away:
            self.close()
            raise self._nobody(f"the connection to the node was lost: {away}") from None
        if not found:
            raise self._nobody(f"no node answers on {connection.url}, {self._endpoint()[1]}")
        return found

    @property
    def connection(self) -> Connection:
        """The connection to the node's server. Raises `Failure` where there is none to be had."""
        if self._connection is None:
            endpoint, source = self._endpoint()
            try:
                self._connection = blocking.connect(endpoint)
            except NotAuthorized as refused:
                what = f"no node can be asked: its NATS server, {source}, does not let us in: {refused}"
                raise self._nobody(what, hint=self._which_credentials()) from None
            except BusUnavailable as away:
                what = f"no node answers: {away} (the NATS server {source})"
                raise self._nobody(what, hint=self._is_it_running()) from None
        return self._connection

    def close(self) -> None:
        """Hang up; the next request connects anew."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _all(self, chunks: Iterator[Chunk]) -> list[Chunk]:
        try:
            return list(chunks)
        except TimeoutError:
            raise self._nobody("the node began to answer and then fell silent") from None

    def _stream(
        self, subject: str, body: bytes, node: str, timeout_s: float | None, answer_s: float, *, command: bool
    ) -> Generator[Chunk]:
        key = self._program.new_token() if command else ""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        back_until_s: float | None = None
        told = False
        while True:
            try:
                headers = self._headers(key, until_s) if command else None
                for chunk in self._chunks(self._connected(back_until_s), subject, body, headers, until_s, answer_s):
                    told = True
                    yield chunk
                return
            except NoResponders:
                if back_until_s is None or time.monotonic() >= back_until_s:
                    who = f"node {node!r} does not answer" if node else "no node answers"
                    what = f"{who} on {self.connection.url}, {self._endpoint()[1]}"
                    raise self._nobody(what, hint="aetherscale node list" if node else "") from None
                time.sleep(BACK_STEP_S)
            except BusUnavailable as away:
                self.close()
                if back_until_s is not None or (told and not command):
                    raise self._nobody(f"the connection to the node was lost: {away}", hint=LOOK) from None
                back_until_s = time.monotonic() + BACK_S

    def _connected(self, until_s: float | None) -> Connection:
        """The connection; with a moment given, it is tried for again and again until then."""
        while True:
            try:
                return self.connection
            except Failure:
                if until_s is None or time.monotonic() >= until_s:
                    raise
                time.sleep(BACK_STEP_S)

    def _chunks(
        self,
        connection: Connection,
        subject: str,
        body: bytes,
        headers: Mapping[str, str] | None,
        until_s: float | None,
        answer_s: float,
    ) -> Iterator[Chunk]:
        """Raises `Failure`, `TimeoutError`, `NoResponders`, `BusUnavailable`."""
        reply = connection.ask(subject, body, headers)
        patience_s, begun, parts = answer_s, False, Reply(subject)
        try:
            while True:
                remaining_s = math.inf if until_s is None else until_s - time.monotonic()
                message = reply.receive(min(patience_s, remaining_s))
                if message is None and begun and remaining_s <= patience_s:
                    raise TimeoutError
                if message is None:
                    raise self._silence(min(patience_s, remaining_s), begun=begun)
                chunk = chunk_of(message, parts)
                yield chunk
                if chunk["type"] == "result":
                    return
                patience_s, begun = SILENCE_S, True
        finally:
            with suppress(BusUnavailable):
                reply.unsubscribe()

    def _headers(self, key: str, until_s: float | None) -> dict[str, str]:
        """The key of a command; nothing is begun once its caller does not wait any more."""
        headers = {"Nats-Msg-Id": key, CLAIMED: self._who()}
        if until_s is not None:
            timeout_s = until_s - time.monotonic()
            # A duration: our clock need not be the node's.
            headers[TIMEOUT] = str(int((max(timeout_s, 0.0) + DEADLINE_MARGIN_S) * 1000))
        return headers

    def _endpoint(self) -> tuple[Endpoint, str]:
        """Where the server is, and where that is written. Raises `Failure`."""
        settings = self._settings
        if settings.nats_url is not None:
            try:
                return outside(settings.nats_url, settings.nats_files), "from --nats or the settings"
            except ValueError as wrong:
                raise bad_usage(str(wrong)) from None
        place = told_in(settings)
        path = place / FILE_NAME
        try:
            found = read_endpoint(place)
            parse_endpoint(found.url)
            return found, f"from {path}"
        except FileNotFoundError:
            raise self._nobody(f"no node answers: there is no {path}") from None
        except PermissionError:
            if is_service(settings):
                why, hint = service.membership()
                raise self._nobody(f"no node can be asked: {why}", hint) from None
            raise self._nobody(f"no node can be asked: {path} is readable by its owner alone") from None
        except NotADirectoryError:
            raise self._nobody(f"no node can be asked: {place} is not a directory", "--state-dir DIR") from None
        except OSError as error:
            raise self._nobody(f"no node can be asked: {path} cannot be read: {error.strerror}") from None
        except ValueError as broken:
            raise self._nobody(f"no node can be asked, by {path}: {broken}") from None

    def _who(self) -> str:
        """The name of this caller: with an outside server its user, else the user of this host. Nothing proves it."""
        if self._settings.nats_url is not None:
            endpoint = self._endpoint()[0]
            named = endpoint.user or ("token" if endpoint.token else "")
        else:
            named = ""
        return _UNFIT.sub("_", named or _unix_user())[:64]

    def _which_credentials(self) -> str:
        if self._settings.nats_url is not None:
            return (
                "correct the credentials in --nats or AETHERSCALE_NATS, or in the file that the settings name for them"
            )
        return f"restart the node, which writes {self._settings.state_dir / FILE_NAME} anew"

    def _is_it_running(self) -> str:
        if self._settings.nats_url is not None:
            return "is that server running, and is a node connected to it?"
        return f"is the node running? if not: {start(self._settings)}"

    def _silence(self, waited_s: float, *, begun: bool) -> Failure:
        if begun:
            return self._nobody("the node fell silent; what it has accepted goes on when it is back", hint=LOOK)
        what = f"no node answered on {self.connection.url} within {waited_s:.3g} s"
        return self._nobody(f"{what}; one that took the request may still do it", hint=LOOK)

    def _nobody(self, message: str, hint: str = "") -> Failure:
        return Failure(503, message, hint=hint or start(self._settings), status=NO_NODE)


def chunk_of(message: Incoming, reply: Reply) -> Chunk:
    """The chunk in a message of a reply. Raises `Failure` for an error chunk and for what is none, `NoResponders`."""
    if message.is_no_responders:
        raise NoResponders
    try:
        chunk = reply.read(message)
    except BadAnswer as bad:
        raise Failure(500, str(bad), hint="another program may have answered in place of the node") from None
    if chunk.get("type") == "error":
        raise Failure.of_chunk(chunk)
    return chunk


def _unix_user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name or str(os.geteuid())
    except KeyError:
        return str(os.geteuid())


def _encoded(body: Mapping[str, Any], task: str) -> bytes:
    """The JSON of a request. Raises `Failure` (status 2) for what JSON cannot say."""
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError as wrong:
        raise bad_usage(
            f"{task}: got {wrong.object!r}, which is not UTF-8: a message to a node cannot carry it",
            "give the file a name in UTF-8, or a link that has one",
        ) from None
