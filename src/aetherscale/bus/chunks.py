"""A node's answer, as its caller reads it: as strictly as a node reads a request.

A client that may publish on a subject can answer a request there, and one that sees a reply can add to it. So every
chunk has the shape that it has to have, all of them come from one node, and all are about one object. What a newer node
adds is passed over. Imports nothing that takes time to import.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from aetherscale.bus.beats import Line, Time
from aetherscale.bus.bus import Incoming
from aetherscale.kernel import wire
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.names import Id, ImageName, Name

MAX_CHUNK_BYTES: Final = 1024 * 1024
"""More than any chunk of a node: it is what a broker takes at most."""
NODE_HEADER: Final = "Aether-Node"

Word = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9-]{0,63}\Z", description="a word in lower case")]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, Meta(ge=0, le=10**9)]

Chunk = dict[str, Any]


class _Failure(Struct, frozen=True, rename="kebab"):
    phase: str
    reason: str
    hint: str
    log_tail: str


class _Exit(Struct, frozen=True, rename="kebab"):
    reason: str
    exit_code: int | None
    signal: int | None
    detail: str


class _Object(Struct, frozen=True, rename="kebab"):
    """The fields that the views of all objects have."""

    id: Id
    name: ImageName
    node: Name
    phase: Word
    since: Time
    revision: Count


class _Vm(_Object, frozen=True, rename="kebab"):
    requested: Word
    observed: Word
    image: Line
    cpus: Count
    memory_mib: Count
    disk_gib: Count
    restart: Word
    autostart: bool
    ports: list[dict[str, Any]]
    labels: dict[Line, Line]
    restarts: Count
    failure: _Failure | None
    exit: _Exit | None
    accelerator: Line | None
    isolation: Line | None
    paused_reason: Line | None
    ready_by: Word


class _Image(_Object, frozen=True, rename="kebab"):
    source: str
    format: Word | None
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")] | None
    size_bytes: Count | None
    virtual_size_bytes: Count | None
    ready: Word
    failure: _Failure | None


class _Chunk(Struct, frozen=True, rename="kebab"):
    """The fields that are looked at; those of one type of chunk are absent in the others."""

    type: Literal["status", "item", "result", "error"]
    status: Word | UnsetType = UNSET
    vm_id: Id | UnsetType = UNSET
    image_id: Id | UnsetType = UNSET
    name: ImageName | UnsetType = UNSET
    node: Name | UnsetType = UNSET
    vm: _Vm | UnsetType = UNSET
    image: _Image | UnsetType = UNSET
    step: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    not_before: Time | UnsetType | None = UNSET
    grace_s: Seconds | UnsetType = UNSET
    waited_s: Seconds | UnsetType = UNSET
    count: Count | UnsetType = UNSET
    text: str | UnsetType = UNSET
    data: bytes | UnsetType = UNSET
    history_bytes: Count | UnsetType = UNSET
    exit_code: int | UnsetType | None = UNSET
    signal: int | UnsetType | None = UNSET
    stdout: str | UnsetType = UNSET
    stderr: str | UnsetType = UNSET
    truncated: bool | UnsetType = UNSET
    code: Annotated[int, Meta(ge=400, le=599)] | UnsetType = UNSET
    error: Word | UnsetType = UNSET
    message: str | UnsetType = UNSET
    retryable: bool | UnsetType = UNSET
    details: dict[str, Any] | UnsetType | None = UNSET


class BadAnswer(Exception):
    """The message is not a node's answer to the request; says what is wrong."""


class Reply:
    """The chunks of one reply, in order. `read` each as it comes."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._node = ""
        self._ids: dict[str, str] = {}

    def read(self, incoming: Incoming) -> Chunk:
        """The chunk in a message. Raises `BadAnswer`, which says what is wrong with it."""
        chunk, shape = self._decoded(incoming.body)
        self._same_node(incoming.headers.get(NODE_HEADER, ""))
        if shape.type != "item":
            self._same_object("vm-id", shape.vm_id, shape.vm)
            self._same_object("image-id", shape.image_id, shape.image)
        if shape.type == "error" and UNSET in (shape.code, shape.message):
            raise self._bad("an error without a code or a message")
        if shape.type == "status" and shape.status is UNSET:
            raise self._bad("a status without a word")
        return chunk

    def _decoded(self, body: bytes) -> tuple[Chunk, _Chunk]:
        if len(body) > MAX_CHUNK_BYTES:
            raise self._bad(f"it has {len(body)} bytes, and at most {MAX_CHUNK_BYTES} are expected")
        try:
            wire.check_depth(body, "answer")
            shape = msgspec.json.decode(body, type=_Chunk)
            return msgspec.json.decode(body, type=Chunk), shape
        except msgspec.ValidationError as invalid:
            raise self._bad(str(invalid)) from None
        except Refused as refused:
            raise self._bad(refused.message) from None
        except (ValueError, RecursionError) as broken:
            raise self._bad(f"it is not a JSON object: {broken}") from None

    def _same_node(self, node: str) -> None:
        self._node = self._node or node
        if node and node != self._node:
            raise self._bad("its parts come from different nodes")

    def _same_object(self, field: str, found: Id | UnsetType, view: _Object | UnsetType) -> None:
        for object_id in (found, view.id if view is not UNSET else UNSET):
            if object_id is not UNSET and self._ids.setdefault(field, object_id) != object_id:
                raise self._bad(f"it is about another object than before: {object_id}")

    def _bad(self, what: str) -> BadAnswer:
        return BadAnswer(f"the answer on {self._subject} is not a node's: {what[:300]}")
