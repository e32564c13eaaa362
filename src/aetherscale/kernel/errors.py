"""The one error that a caller gets to see, and its numbers.

`Refused` means that the caller is wrong, or that the request cannot be served now; it is answered, never recorded.
What the host could not do is an outcome and becomes an event; where we are wrong, an assertion fails loudly.

    code  error              exit status of the command line
    400   bad-request        2
    403   forbidden          1
    404   not-found          3
    409   conflict           1
    413   too-large          2
    500   internal           1
    501   not-implemented    1
    503   unavailable        4 where no node answered, else 1
    504   deadline           5
    507   storage-full       1
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

Code = Literal[400, 403, 404, 409, 413, 500, 501, 503, 504, 507]
"""Every number that an error can have: another one is a type error, so that none can be raised without its word."""

SLUGS: Final[Mapping[Code, str]] = {
    400: "bad-request",
    403: "forbidden",
    404: "not-found",
    409: "conflict",
    413: "too-large",
    500: "internal",
    501: "not-implemented",
    503: "unavailable",
    504: "deadline",
    507: "storage-full",
}


class Refused(Exception):
    """A request that is not served: the operation, what it got, what it expected, and what to do next.

    `message` is one sentence or two; `hint` is what to type or change; `field` names the offending field of the input.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        hint: str = "",
        field: str = "",
        retryable: bool = False,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code: Code = code
        self.error = SLUGS[code]
        self.message = message
        self.hint = hint
        self.field = field
        self.retryable = retryable
        self.details = dict(details or {})
