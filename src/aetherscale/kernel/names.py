"""Validated names, identifiers and sizes, as types that msgspec enforces wherever a message is decoded.

The patterns are anchored with `\\A` and `\\Z`: `$` would let a trailing newline through.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from msgspec import Meta

NAME_PATTERN: Final = r"\A[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?\Z"
IMAGE_NAME_PATTERN: Final = r"\A[a-z](?:[a-z0-9._-]{0,61}[a-z0-9])?\Z"
ID_PATTERN: Final = r"\A[0-9][0-9a-f]{15}\Z"
CHANNEL_PATTERN: Final = r"\A[A-Za-z0-9_-]{1,64}\Z"
KEY_PATTERN: Final = r"\A[\x20-\x7e]{1,128}\Z"

Name = Annotated[str, Meta(pattern=NAME_PATTERN, description="a letter, then letters, digits and dashes; at most 63")]
"""The name of a VM, network, VPN, group, node or tenant."""

ImageName = Annotated[
    str, Meta(pattern=IMAGE_NAME_PATTERN, description="as a name, and also '.' and '_' inside; at most 63")
]

Id = Annotated[str, Meta(pattern=ID_PATTERN, description="16 lower-case hex digits, the first one 0-9")]
"""A generated identifier. It starts with a digit, so that it is never a name, and is safe as one NATS token."""

Reference = Annotated[
    str,
    Meta(pattern=rf"(?:{NAME_PATTERN})|(?:{ID_PATTERN})", description="a name or an id"),
]
"""What users write wherever an object is meant."""

ImageReference = Annotated[
    str, Meta(pattern=rf"(?:{IMAGE_NAME_PATTERN})|(?:{ID_PATTERN})", description="an image's name or id")
]

Channel = Annotated[str, Meta(pattern=CHANNEL_PATTERN, description="letters, digits, '_' and '-'; at most 64")]
"""A response channel of the first version's message."""

IdempotencyKey = Annotated[str, Meta(pattern=KEY_PATTERN, description="1 to 128 printable ASCII characters")]

Cpus = Annotated[int, Meta(ge=1, le=256, description="virtual CPUs")]
MemoryMib = Annotated[int, Meta(ge=32, le=16 * 1024 * 1024, description="guest memory in MiB")]
DiskGib = Annotated[int, Meta(ge=1, le=64 * 1024, description="disk size in GiB")]

LabelKey = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?\Z",
        description="letters, digits, '.', '_', '/', '-'",
    ),
]
LabelValue = Annotated[
    str, Meta(pattern=r"\A[^\x00-\x1f\x7f-\x9f\u2028\u2029]{0,256}\Z", description="text of one line, at most 256")
]
Labels = Annotated[dict[LabelKey, LabelValue], Meta(max_length=64)]


def is_id(reference: str) -> bool:
    """Whether a reference is an id; otherwise it can only be a name, since no name starts with a digit."""
    return re.fullmatch(ID_PATTERN, reference) is not None


def is_name(text: str) -> bool:
    """Whether a text is a name of anything but an image."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def derive_id(*parts: str) -> str:
    """An id that is a function of its parts: the same command always means the same object.

    64 bits of SHA-256 over the parts, each preceded by its length; the first digit is folded into 0-9.
    """
    import hashlib  # late: the command line derives no id, and starts without it

    digest = hashlib.sha256(b"".join(b"%d:%s" % (len(raw), raw) for raw in (part.encode() for part in parts)))
    text = digest.hexdigest()[:16]
    return str(int(text[0], 16) % 10) + text[1:]
