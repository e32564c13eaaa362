"""User-data for cloud-init: what a caller has for a guest beside what we give it. Pure.

It is the caller's own, and is handed on byte by byte; only what cloud-init could make nothing of is refused. There may
be passwords in it, so it is treated as an init script is: see `firstboot`.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from aetherscale.kernel.errors import Reason, Refused

FIELD: Final = "cloud-init"
MAX_USER_DATA_BYTES: Final = 64 * 1024
"""The largest user-data, in UTF-8: with the largest init script there is room for all else in one message."""

UserData = Annotated[
    str,
    Meta(
        max_length=MAX_USER_DATA_BYTES,
        description=f"user-data for cloud-init, at most {MAX_USER_DATA_BYTES} bytes in UTF-8",
    ),
]

_BEGINNINGS: Final = (
    *("#cloud-config", "#cloud-boothook", "#include", "#part-handler", "#!", "## template: jinja"),
    *("Content-Type: multipart/", "MIME-Version: 1.0"),
)
"""How user-data begins: cloud-init says of what it is by that, but for MIME and case (user-data formats)."""


def checked_user_data(text: str) -> bytes:
    """The bytes of user-data. Raises `Refused` (bad request; too large), which does not repeat any of it."""
    data = text.encode()
    if not data:
        raise _refused("got empty user-data", "leave it out where there is none")
    if len(data) > MAX_USER_DATA_BYTES:
        raise Refused(
            Reason.TOO_LARGE,
            f"got user-data of {len(data)} bytes, expected at most {MAX_USER_DATA_BYTES}",
            field=FIELD,
            remedy="let smaller user-data fetch the rest: #include and a URL",
        )
    if b"\0" in data:
        raise _refused("got user-data with a NUL byte in it", "give text: cloud-config, a script, or a MIME message")
    if not text.lower().startswith(tuple(beginning.lower() for beginning in _BEGINNINGS)):
        raise _refused(
            "the beginning of the user-data does not say of what kind it is",
            "begin it with #cloud-config, with #! and an interpreter, or with the header of a MIME message",
        )
    return data


def _refused(message: str, remedy: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, message, field=FIELD, remedy=remedy)
