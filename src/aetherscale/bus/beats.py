"""A node's report about itself: in its heartbeat, and in answers to requests to all nodes. Written and read here.

Any client that may publish can forge one, so it is read as a stranger's command is: names are names, texts have one
line and no control characters, and nothing is longer than it has to be. Fields that a newer node adds are passed over.
Imports nothing that takes time to import.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from aetherscale.kernel import subjects, wire
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.names import Name

INTERVAL_S: Final = 5.0
MAX_BEAT_BYTES: Final = 32 * 1024
MAX_PEERS: Final = 256
MAX_TROUBLES: Final = 16
MAX_LINE_CHARACTERS: Final = 500

Epoch = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z", description="letters, digits, '_' and '-'")]
Version = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9.+-]{1,64}\Z", description="a version like 0.1.0")]
Time = Annotated[
    str, Meta(pattern=r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z", description="RFC 3339, UTC, six digits")
]
Instance = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9-]{0,64}\Z", description="letters, digits and '-'")]
Hash = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{64})?\Z", description="64 hex digits")]
Number = Annotated[int, Meta(ge=0, le=2**63 - 1, description="not negative")]
Line = Annotated[
    str,
    Meta(
        pattern=r"\A[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]{0,500}\Z",
        description=f"text of one line, at most {MAX_LINE_CHARACTERS}",
    ),
]


class Beat(Struct, frozen=True, rename="kebab"):
    """One node, at one moment. A node of version 0.1 says the first five fields."""

    node: Name
    epoch: Epoch
    """Names its log for ever."""
    seq: Number
    """The position of the last event in the node's log."""
    version: Version
    time: Time
    instance: Instance = ""
    """Names the process: after a restart it is another one."""
    head_seq: Number = 0
    """The position of the last event under the hash below."""
    head_hash: Hash = ""
    """The last link of the log's hash chain. Kept with its position, it shows later whether the log is the same."""
    cpus: Number = 0
    memory_mib: Number = 0
    memory_available_mib: Number = 0
    vms: Number = 0
    vms_running: Number = 0
    stored_seq: Number = 0
    """Up to where the copy on JetStream is known to be whole."""
    troubles: Annotated[tuple[Line, ...], Meta(max_length=MAX_TROUBLES)] = ()
    """Problems that a human has to solve."""
    peers: Annotated[tuple[Name, ...], Meta(max_length=MAX_PEERS)] = ()
    """The other nodes that it hears."""

    @property
    def identity(self) -> tuple[str, str, str]:
        """Which process of which log says this."""
        return self.node, self.epoch, self.instance


def read(body: bytes, subject: str = "") -> Beat:
    """The beat in a message. With its subject, it has to be the heartbeat subject of the node that it names.

    Raises `Refused` (400 or 413).
    """
    if len(body) > MAX_BEAT_BYTES:
        raise Refused(Reason.TOO_LARGE, f"heartbeat: got {len(body)} bytes, expected at most {MAX_BEAT_BYTES}")
    beat = wire.decode(body, Beat, "heartbeat")
    if subject and subject != subjects.heartbeat(beat.node):
        raise Refused(Reason.BAD_REQUEST, f"heartbeat: got node {beat.node!r} on {subject[:200]!r}", field="node")
    return beat


def line(text: str) -> str:
    """A text made into one that a beat may have as a line."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return shown if len(shown) <= MAX_LINE_CHARACTERS else shown[: MAX_LINE_CHARACTERS - 1] + "…"
