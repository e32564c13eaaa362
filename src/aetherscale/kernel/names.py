"""Validated names, identifiers and sizes, as types that msgspec enforces wherever a message is decoded.

The patterns are anchored with `\\A` and `\\Z`: `$` would let a trailing newline through.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

from msgspec import Meta

from aetherscale.kernel.errors import Reason, Refused

CANDIDATES: Final = 5
"""So many of the objects that a short id may mean are named."""
LEAST_SHORT_ID: Final = 4
"""How much of an id has to be given."""

NAME_PATTERN: Final = r"\A[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?\Z"
IMAGE_NAME_PATTERN: Final = r"\A[a-z](?:[a-z0-9._-]{0,61}[a-z0-9])?\Z"
DEVICE_NAME_PATTERN: Final = r"\A(?!\.{1,2}\Z)[A-Za-z0-9_.+@=-]{1,15}\Z"
ID_PATTERN: Final = r"\A[0-9][0-9a-f]{15}\Z"
ID_LENGTH: Final = 16
CHANNEL_PATTERN: Final = r"\A[A-Za-z0-9_-]{1,64}\Z"
KEY_PATTERN: Final = r"\A[\x20-\x7e]{1,128}\Z"

NAME_RULE: Final = (
    "lower-case letters a-z, digits and dashes; it begins with a letter, ends with a letter or digit, and has at most "
    "63 characters"
)
IMAGE_NAME_RULE: Final = (
    "lower-case letters a-z, digits, dashes, '.' and '_'; it begins with a letter, ends with a letter or digit, and "
    "has at most 63 characters"
)
DEVICE_NAME_RULE: Final = "the name of a network device: at most 15 letters, digits and the signs _ . + @ = -"
ID_RULE: Final = "an id of 16 digits 0-9 and a-f, which begins with 0-9"

Name = Annotated[str, Meta(pattern=NAME_PATTERN, description=f"a name: {NAME_RULE}")]
"""The name of a VM, network, VPN, group, node or tenant."""

ImageName = Annotated[str, Meta(pattern=IMAGE_NAME_PATTERN, description=f"a name: {IMAGE_NAME_RULE}")]

Id = Annotated[str, Meta(pattern=ID_PATTERN, description=ID_RULE)]
"""A generated identifier. It starts with a digit, so that it is never a name, and is safe as one NATS token."""

Reference = Annotated[
    str,
    Meta(pattern=rf"(?:{NAME_PATTERN})|(?:{ID_PATTERN})", description=f"a name ({NAME_RULE}), or {ID_RULE}"),
]
"""A reference to an object, as users write it."""

ImageReference = Annotated[
    str,
    Meta(
        pattern=rf"(?:{IMAGE_NAME_PATTERN})|(?:{ID_PATTERN})", description=f"a name ({IMAGE_NAME_RULE}), or {ID_RULE}"
    ),
]

Channel = Annotated[str, Meta(pattern=CHANNEL_PATTERN, description="letters, digits, '_' and '-'; at most 64")]
"""A response channel of the first version's message."""

Cpus = Annotated[int, Meta(ge=1, le=256, description="virtual CPUs")]
MemoryMib = Annotated[int, Meta(ge=32, le=16 * 1024 * 1024, description="guest memory in MiB")]
DiskGib = Annotated[int, Meta(ge=1, le=64 * 1024, description="disk size in GiB")]

LabelKey = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?\Z",
        description="a key: letters a-z and A-Z, digits, '.', '_', '/' and '-'; it begins and ends with a letter or "
        "digit, and has at most 63 characters",
    ),
]
LabelValue = Annotated[
    str,
    Meta(
        pattern=r"\A[^\x00-\x1f\x7f-\x9f\u2028\u2029]{0,256}\Z",
        description="a value: text of one line, at most 256 characters",
    ),
]
Labels = Annotated[dict[LabelKey, LabelValue], Meta(max_length=64)]


def is_id(reference: str) -> bool:
    """Whether a reference is an id; otherwise it can only be a name, since no name starts with a digit."""
    return re.fullmatch(ID_PATTERN, reference) is not None


def is_short_id(reference: str) -> bool:
    """Whether it is the beginning of an id, as lists show it: no name begins with a digit."""
    return begins_id(reference) and LEAST_SHORT_ID <= len(reference) < ID_LENGTH


def begins_id(reference: str) -> bool:
    """Whether it can only be meant as an id or its beginning, however long it is: no name begins with a digit."""
    return re.fullmatch(r"[0-9][0-9a-f]*", reference) is not None


def too_short(reference: str, field: str = "") -> Refused | None:
    """The refusal of a part of an id that is too short; None for anything else."""
    if not begins_id(reference) or len(reference) >= LEAST_SHORT_ID:
        return None
    expected = f"a name, or at least {LEAST_SHORT_ID} characters of an id"
    return Refused(
        Reason.BAD_REQUEST,
        f"got {reference!r}, expected {expected}",
        field=field,
        remedy="give more of the id, or the name",
    )


def ambiguous(short: str, meant: Sequence[tuple[str, str]], field: str = "") -> Refused:
    """The refusal of a beginning that several ids have; they come with the names of their objects."""
    known = ", ".join(f"{name} ({whole})" for whole, name in sorted(meant)[:CANDIDATES])
    more = f" and {len(meant) - CANDIDATES} more" if len(meant) > CANDIDATES else ""
    return Refused(
        Reason.BAD_REQUEST,
        f"{short!r} is the beginning of {len(meant)} ids: {known}{more}",
        field=field,
        remedy="give more of the id, or the name",
    )


def is_device_name(text: str) -> bool:
    """Whether it can be the name of a network device, and is harmless wherever it is written."""
    return re.match(DEVICE_NAME_PATTERN, text) is not None


def is_name(text: str) -> bool:
    """Whether a text is a name of anything but an image."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def name_like(text: str, *, image: bool = False) -> str:
    """A valid name that is as much like a text as can be; "" where nothing is left of it, and for a list or a path."""
    if any(mark in text for mark in ",/:"):
        return ""
    kept = r"[^a-z0-9._]+" if image else r"[^a-z0-9]+"
    return re.sub(kept, "-", text.lower()).lstrip("0123456789-._")[:63].rstrip("-._")


def derive_id(*parts: str) -> str:
    """An id that is a function of its parts: the same command always means the same object.

    64 bits of SHA-256 over the parts, each preceded by its length; the first digit is folded into 0-9.
    """
    import hashlib  # late: the command line derives no id, and starts without it

    digest = hashlib.sha256(b"".join(b"%d:%s" % (len(raw), raw) for raw in (part.encode() for part in parts)))
    text = digest.hexdigest()[:16]
    return str(int(text[0], 16) % 10) + text[1:]
