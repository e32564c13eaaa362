"""What a guest is given at its first boot beside its keys: an init script, and how that has ended. Pure.

The script is a secret. It is in no event, view or effect: these have its SHA-256 alone, and the host has the script
itself until its end is on record (`actors.compute.ports.InitScripts`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from aetherscale.kernel.attempts import FIRST, Attempt
from aetherscale.kernel.errors import Reason, Refused

FirstBoot = Literal["credentials", "aetherscale", "tiny", "cloud-init", "none"]
"""How the guests of an image take what is theirs at their first boot, as in the event `ImageImportRequested`."""
Gift = Literal["keys", "init script", "host name", "user", "user-data of cloud-init"]
TAKES: Final[Mapping[FirstBoot, frozenset[Gift]]] = {
    "credentials": frozenset({"keys", "host name"}),
    "aetherscale": frozenset({"keys", "init script", "host name", "user"}),
    "tiny": frozenset({"init script", "host name"}),
    "cloud-init": frozenset({"keys", "init script", "host name", "user", "user-data of cloud-init"}),
    "none": frozenset(),
}
"""What each of them can be given. A host name is no wish of a caller's: guests that take none are called otherwise."""

FIELD: Final = "init-script"
MAX_SCRIPT_BYTES: Final = 128 * 1024
"""The largest init script, in UTF-8: half of what a message can carry."""
MAX_FIRST_LINE_BYTES: Final = 255
"""What Linux reads of the line that names the interpreter (execve(2))."""
MAX_OUTPUT_BYTES: Final = 4096
"""How much of the end of a script's output is recorded."""
MOST_STATUS: Final = 255

RESERVED_USERS: Final = frozenset({
    "root", "daemon", "bin", "sys", "sync", "games", "man", "lp", "mail", "news", "uucp", "proxy", "www-data", "backup",
    "list", "irc", "nobody", "messagebus", "sshd", "adm", "tty", "disk", "kmem", "dialout", "fax", "voice", "cdrom",
    "floppy", "tape", "sudo", "audio", "dip", "operator", "src", "shadow", "utmp", "video", "sasl", "plugdev", "staff",
    "users", "nogroup", "crontab", "input", "sgx", "kvm", "render", "netdev", "polkitd", "systemd-network",
    "systemd-resolve", "systemd-journal", "systemd-timesync",
})  # fmt: skip
"""Users and groups that a Debian has of its own: who is one of them is no person."""

GuestUser = Annotated[
    str,
    Meta(
        pattern=r"\A[a-z][a-z0-9-]{0,30}[a-z0-9]\Z|\A[a-z]\Z",
        description="the name of a user: at most 32 lower-case letters, digits and dashes; it begins with a letter and "
        "does not end with a dash",
    ),
]

InitScript = Annotated[
    str, Meta(max_length=MAX_SCRIPT_BYTES, description=f"a script, at most {MAX_SCRIPT_BYTES} bytes in UTF-8")
]

InitOutcome = Literal["ended", "interrupted", "not-run", "lost"]
"""`ended`, with an exit status; `interrupted`, the guest went down while it ran; `not-run`, the guest could not make
sure that it runs once; `lost`, the node no longer had it when the guest was booted."""

_MARK: Final = "\ufeff".encode()
_INTERPRETER: Final = re.compile(r"#![ \t]*/[^ \t\x00-\x1f]+(?:[ \t][^\x00\r\n]*)?")
_WHAT_TERMINALS_OBEY: Final = re.compile(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]|[\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class InitEnded(Struct, frozen=True):
    """The guest said how its init script has ended, or the driver that it had none to give."""

    vm_id: str
    run: int
    outcome: InitOutcome
    exit_status: int | None = None
    """As a shell has it: 0 to 255; 128 and more for an end by a signal. Only where it has ended."""
    output: str = ""
    """The end of what it printed, at most 4 KiB, without what a terminal would obey."""


class Init(Struct, frozen=True, gc=False):
    """What is known of the init script of a VM. Work on it has attempts of its own, as that on its rules."""

    sha256: str = ""
    """Of the script; "" where the VM has none."""
    outcome: InitOutcome | None = None
    """None until it is told."""
    exit_status: int | None = None
    output: str = ""
    is_kept: bool = False
    """Whether the host may still have the script."""
    attempt: Attempt = FIRST

    @property
    def is_awaited(self) -> bool:
        """Whether its end is still to be told."""
        return self.sha256 != "" and self.outcome is None

    @property
    def has_succeeded(self) -> bool:
        """Whether it has ended well."""
        return self.outcome == "ended" and self.exit_status == 0


NO_INIT: Final = Init()


def checked_script(text: str) -> bytes:
    """The bytes of an init script. Raises `Refused` (bad request; too large), which does not repeat any of it."""
    script = text.encode()
    if not script:
        raise _refused("got an empty script", "leave it out where nothing is to be run")
    if len(script) > MAX_SCRIPT_BYTES:
        raise Refused(
            Reason.TOO_LARGE,
            f"got a script of {len(script)} bytes, expected at most {MAX_SCRIPT_BYTES}",
            field=FIELD,
            remedy="let a smaller script download the rest",
        )
    if b"\0" in script:
        raise _refused("got a script with a NUL byte in it, which no shell reads", "give a text file")
    if b"\r\n" in script:
        raise _refused(
            "got a script whose lines end with CR LF, which no shell of Linux reads", "sed -i 's/\\r$//' FILE"
        )
    if script.startswith(_MARK):
        raise _refused(
            "got a script that begins with a byte order mark, which hides its #! from the kernel",
            "sed -i '1s/^\\xef\\xbb\\xbf//' FILE",
        )
    first, _, _ = script.partition(b"\n")
    if _INTERPRETER.fullmatch(first.decode()) is None or len(first) > MAX_FIRST_LINE_BYTES:
        raise _refused(
            "got a script whose first line does not name its interpreter",
            f"begin it with #!/bin/sh, or #! and another absolute path, at most {MAX_FIRST_LINE_BYTES} bytes",
        )
    return script


def checked_user(name: str) -> str:
    """The name of a user who may be made in a guest. Raises `Refused` (bad request)."""
    if name in RESERVED_USERS:
        raise Refused(
            Reason.BAD_REQUEST,
            f"{name!r} is a user or a group that a Debian has of its own",
            field="user",
            remedy="take another name" if name != "root" else "leave it out: without a user the keys are root's",
        )
    return name


def digest_of(script: bytes) -> str:
    """Its SHA-256, 64 hex digits."""
    return hashlib.sha256(script).hexdigest()


def shown_output(raw: bytes) -> str:
    """The end of an output as it is recorded: text that is harmless on a terminal, at most 4 KiB in UTF-8.

    What is not UTF-8, and what a terminal would obey, is U+FFFD each.
    """
    text = _WHAT_TERMINALS_OBEY.sub("\ufffd", raw[-MAX_OUTPUT_BYTES:].decode("utf-8", "replace").replace("\r\n", "\n"))
    return text.encode()[-MAX_OUTPUT_BYTES:].decode("utf-8", "ignore")


def _refused(message: str, remedy: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, message, field=FIELD, remedy=remedy)
