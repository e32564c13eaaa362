"""How a refusal looks on NATS and in a terminal: reasons have numbers, and remedies are command lines.

code  error              exit status of the command line
400   bad-request        2
403   forbidden          1
404   not-found          3
409   conflict           1
412   precondition-failed  1
413   too-large          2
500   internal           1
501   not-implemented    1
503   unavailable        4 where no node answered, else 1
504   deadline           5
507   storage-full       1
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Final

from aetherscale.kernel.errors import Reason, Refused, Remedy, Task
from aetherscale.kernel.replies import Chunk

CODES: Final[Mapping[Reason, int]] = {
    Reason.BAD_REQUEST: 400,
    Reason.FORBIDDEN: 403,
    Reason.NOT_FOUND: 404,
    Reason.CONFLICT: 409,
    Reason.PRECONDITION_FAILED: 412,
    Reason.TOO_LARGE: 413,
    Reason.INTERNAL: 500,
    Reason.NOT_IMPLEMENTED: 501,
    Reason.UNAVAILABLE: 503,
    Reason.DEADLINE: 504,
    Reason.STORAGE_FULL: 507,
}
"""The number of each reason, as in HTTP."""
WORDS: Final[Mapping[str, str]] = {"group": "firewall group", "forward": "firewall forward"}
"""The words of the command line under which the tasks of a kind are, where they are not the kind itself."""
SLUGS: Final[Mapping[int, str]] = {code: reason.value for reason, code in CODES.items()}
"""The word of each number."""


def error(refused: Refused) -> Chunk:
    """The bad end of a stream."""
    details = dict(refused.details)
    if refused.field:
        details["field"] = refused.field
    if refused.remedy:
        details["hint"] = hint(refused.remedy)
    return {
        "type": "error",
        "code": CODES[refused.reason],
        "error": refused.reason.value,
        "message": refused.message,
        "retryable": refused.retryable,
        "details": details,
    }


def hint(remedy: Remedy) -> str:
    """A remedy in words, its tasks as command lines."""
    return "".join(part if isinstance(part, str) else command_line(part) for part in remedy)


def command_line(task: Task) -> str:
    """How a task is typed in a shell: `aetherscale vm stop web --kill`."""
    words = ["aetherscale", *words_of(task.kind).split(), task.verb, task.of]
    for name, value in task.options.items():
        words += [f"--{name}", "" if value is True else str(value)]
    return shlex.join(word for word in words if word)


def words_of(kind: str) -> str:
    """The words before the task of a kind on the command line: `vm`, `firewall group`."""
    return WORDS.get(kind, kind)
