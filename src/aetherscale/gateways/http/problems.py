"""What is wrong, as problem details (RFC 9457): one shape for refusals of the node and for those of HTTP itself.

The number and the word of a refusal are those that it has on NATS (`bus/refusals.py`). The remedy is data: words, and
tasks with the request that does each. `hint` is the same as a command line, as on NATS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from aetherscale.bus.refusals import CODES, hint
from aetherscale.gateways.http.messages import PLAIN, Headers, Response
from aetherscale.kernel.errors import Reason, Refused, Task

MEDIA_TYPE: Final = "application/problem+json"
KEY: Final = "Idempotency-Key"
_ON_NATS: Final = "Nats-Msg-Id"

TITLES: Final[Mapping[str, tuple[int, str, str]]] = {
    "bad-request": (
        400,
        "The request cannot be understood",
        "`field` names what is wrong; `detail` says what is expected.",
    ),
    "unauthorized": (
        401,
        "Nothing says who asks",
        "Send the node's token, `Authorization: Bearer …`, or use the Unix socket.",
    ),
    "forbidden": (403, "The caller may not do this", "Ask whoever runs the node."),
    "not-found": (404, "There is no such thing", "List what there is."),
    "method-not-allowed": (405, "The path does not take this method", "The header `Allow` has those that it takes."),
    "request-timeout": (408, "The request did not come in time", "Send it at once."),
    "conflict": (409, "What there is does not allow it", "Read the object, then decide anew; or take a new key."),
    "length-required": (411, "The request says two lengths, or none", "Send `Content-Length`, or chunks."),
    "precondition-failed": (412, "The object has changed since", "Read it again, then decide anew."),
    "too-large": (413, "The request or its answer is too large", "Ask for less: a smaller body, a `limit`."),
    "unsupported-media-type": (415, "The body is of another type", "Send JSON: `Content-Type: application/json`."),
    "header-too-large": (431, "The head of the request is too large", "Send fewer or shorter headers."),
    "internal": (
        500,
        "It was tried and failed, or the node made a mistake",
        "`detail` says why; the node's log has more.",
    ),
    "not-implemented": (
        501,
        "This version, or this guest, has nothing for it",
        "See the changelog for what came when.",
    ),
    "unavailable": (503, "It cannot be served now", "Wait a moment, then ask again."),
    "deadline": (504, "The time to wait ran out", "`details` say whether the work goes on; ask for its operation."),
    "storage-full": (507, "A disk is full", "Make room; nothing was done."),
}
"""By the last part of its type: status, title, and what to do."""


class HttpError(Exception):
    """What HTTP itself refuses. `word` is one of `TITLES`."""

    def __init__(self, word: str, detail: str, *, field: str = "", hint: str = "", headers: Headers = ()) -> None:
        super().__init__(detail)
        self.word, self.detail, self.field, self.hint, self.headers = word, detail, field, hint, headers

    @property
    def response(self) -> Response:
        """As problem details."""
        return _problem(self.word, self.detail, self.field, self.hint, (), {}, retryable=False, headers=self.headers)


def details_of(refused: Refused) -> dict[str, Any]:
    """The problem details of a refusal."""
    word, field, message = refused.reason.value, refused.field, refused.message
    if field == _ON_NATS:
        field, message = KEY, message.replace(_ON_NATS, KEY)
    remedy = [part if isinstance(part, str) else _task(part) for part in refused.remedy]
    words = hint(refused.remedy) if refused.remedy else ""
    return _details(word, message, field, words, remedy, refused.details, retryable=refused.retryable)


def problem(refused: Refused, headers: Headers = ()) -> Response:
    """The response to a request that is refused."""
    if refused.reason is Reason.UNAVAILABLE:
        headers = (*headers, ("retry-after", "1"))
    return Response(CODES[refused.reason], msgspec.json.encode(details_of(refused)), headers, MEDIA_TYPE)


MISTAKE: Final = Refused(Reason.INTERNAL, "the node made a mistake; its log says more")
FULL: Final = Refused(Reason.UNAVAILABLE, "this node has as many connections as it serves at one time", retryable=True)
STOPPING: Final = Refused(
    Reason.UNAVAILABLE,
    "the node is stopping; what it has accepted goes on when it is back",
    retryable=True,
    details={"goes-on": True},
)


def page_of(word: str) -> Response | None:
    """What a type of problem is, for a human; None for one that there is not."""
    if word not in TITLES:
        return None
    status, title, about = TITLES[word]
    return Response(200, f"{status} {word}: {title}.\n\n{about}\n".encode(), media_type=PLAIN)


def _task(task: Task) -> dict[str, Any]:
    from aetherscale.gateways.http.routes import request_for

    told = {"kind": task.kind, "verb": task.verb, "of": task.of, "options": dict(task.options)}
    return {**told, "request": request_for(task)}


def _problem(
    word: str,
    detail: str,
    field: str,
    words: str,
    remedy: Any,
    details: Mapping[str, Any],
    *,
    retryable: bool,
    headers: Headers,
) -> Response:
    told = _details(word, detail, field, words, list(remedy), details, retryable=retryable)
    return Response(TITLES[word][0], msgspec.json.encode(told), headers, MEDIA_TYPE)


def _details(
    word: str, detail: str, field: str, words: str, remedy: list[Any], details: Mapping[str, Any], *, retryable: bool
) -> dict[str, Any]:
    status, title, _ = TITLES[word]
    told: dict[str, Any] = {
        "type": f"/problems/{word}",
        "title": title,
        "status": status,
        "detail": detail,
        "retryable": retryable,
    }
    optional = {"field": field, "hint": words, "remedy": remedy, "details": dict(details)}
    return told | {name: value for name, value in optional.items() if value}
