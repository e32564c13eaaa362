"""A download over HTTP that can be interrupted: it goes on where it ended if the server has the same file.

The validator of the file (RFC 9110, sections 8.8 and 13.1.5) lies beside the part file. With it the rest is asked for
by `Range` and `If-Range`; where the server has another file by now, or knows no ranges, the download starts again. The
standard library's client does the talking, with TLS and the proxies of the environment.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import urllib.error
from http import HTTPStatus
from pathlib import Path
from typing import Final

import msgspec

from aetherscale.actors.images.fetching import web
from aetherscale.actors.images.fetching.kept import LEAST_BYTES
from aetherscale.actors.images.fetching.transfer import CHUNK_BYTES, Limits, Transfer, open_part
from aetherscale.filecopy import free_bytes
from aetherscale.kernel.fault import Fault
from aetherscale.statedir import write_file

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_PASSING: Final = {
    HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT,
}  # fmt: skip
_LOOK: Final = "look at the address"


class _Begun(msgspec.Struct, frozen=True):
    """The record of a download that is not done: a digest of its URL, and how the server names this very file.

    After a boot it is not known what of the part file had reached the disk.
    """

    source: str
    boot: str
    validator: str
    total_bytes: int | None
    sends_parts: bool = False
    """Whether the server has sent a part, or said that it does (`Accept-Ranges`)."""


class _Unfit(Exception):
    """The server's file does not continue the one that is here."""


def download(source: str, transfer: Transfer, limits: Limits) -> None:
    """Have all of `source`, an http or https URL, in the part file. Raises Fault, OSError and Stopped.

    A connection that breaks is made again, and again, as long as each one brings something.
    """
    _, transfer.most_bytes = _load(source, transfer.part)
    while True:
        before_bytes = transfer.most_bytes
        try:
            return _try(source, transfer, limits)
        except web.ServerError as error:
            transfer.go_on()
            if transfer.most_bytes - before_bytes < limits.progress_bytes:
                remedy = "; ".join(filter(None, (error.remedy, f"try again{again(source, transfer.part)}")))
                raise Fault(f"the connection failed: {plain(error)}", remedy, retryable=True) from error
        transfer.pause(limits.again_s)


def _try(source: str, transfer: Transfer, limits: Limits) -> None:
    """Bring what is missing by one connection. Raises what `web` raises where that breaks, and Fault."""
    begun, have_bytes = _load(source, transfer.part)
    try:
        try:
            _go_on(source, transfer, limits, begun, have_bytes)
        except _Unfit:
            forget(transfer.part)
            _go_on(source, transfer, limits, None, 0)
    except _Unfit as error:
        raise Fault(f"the server does not answer as asked: {error}", _LOOK, retryable=False) from error
    except urllib.error.HTTPError as error:
        with error:
            raise refusal(error) from error
    except web.NoAddress as error:
        raise Fault(f"this is no address: {error}", _LOOK, retryable=False) from error


def again(source: str, part: Path) -> str:
    """What the next try of a download will do with what came so far, behind `try again`; "" where nothing came."""
    begun, have_bytes = _load(source, part)
    if begun is not None and have_bytes < LEAST_BYTES:
        return ""  # the next attempt goes on from there, another import does not
    if begun is not None:
        sure = "" if begun.sends_parts else ", if the server sends a part of a file when asked to"
        return f": it goes on where it ended{sure}"
    if part.is_file() and part.lstat().st_size:
        return ": it begins anew, since the server does not say (by ETag or Last-Modified) whether its file is the same"
    return ""


def plain(said: object) -> str:
    """The text of an error, in one line without control characters: some of it may be a server's word."""
    return "".join(c if c.isprintable() else "?" for c in str(said))[:300]


def forget(part: Path) -> None:
    """Remove what is known of a download."""
    _beside(part).unlink(missing_ok=True)


def _go_on(source: str, transfer: Transfer, limits: Limits, begun: _Begun | None, have_bytes: int) -> None:
    """Ask for what is missing, and write it behind what is there; or all of it, in its place. Raises _Unfit."""
    if begun is not None and begun.total_bytes == have_bytes:
        return
    headers = {"Accept-Encoding": "identity"}
    if begun is not None:
        headers |= {"Range": f"bytes={have_bytes}-", "If-Range": begun.validator}
    try:
        response = web.get(source, headers, transfer, limits)
    except urllib.error.HTTPError as error:
        if begun is not None and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            error.close()
            raise _Unfit from error
        raise
    with response:
        offset, total = _place(response, begun, have_bytes)
        transfer.require_allowed(offset, total)
        _require_room(transfer.part, (total or 0) - offset)
        _remember(source, transfer.part, response, total)
        _receive(response, transfer, limits, offset, total)


def _place(response: http.client.HTTPResponse, begun: _Begun | None, have_bytes: int) -> tuple[int, int | None]:
    """Where what the server sends belongs, and how many bytes there are in all, if it says so. Raises _Unfit."""
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise _Unfit(f"it sends the file in the encoding {encoding[:40]!r}")
    if response.status == HTTPStatus.OK:
        return 0, response.length
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status != HTTPStatus.PARTIAL_CONTENT or begun is None or match is None:
        raise _Unfit(f"its status is {response.status}")
    first, last, total = (int(number) for number in match.groups())
    same = _validator(response) in (None, begun.validator) and begun.total_bytes in (None, total)
    if not same or first != have_bytes or last + 1 != total:
        raise _Unfit("it sends another part")
    return first, total


def _require_room(part: Path, missing_bytes: int) -> None:
    """Raises OSError where the disk has no room for what is announced."""
    if missing_bytes > free_bytes(part.parent):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _receive(
    response: http.client.HTTPResponse, transfer: Transfer, limits: Limits, offset: int, total: int | None
) -> None:
    """Write what the server sends to the part file from `offset` on."""
    done = offset
    part = open_part(transfer.part, keep=offset > 0)
    try:
        while piece := web.read(response, CHUNK_BYTES, limits):
            transfer.received_bytes += len(piece)
            transfer.require_allowed(done + len(piece), total)
            while piece:
                written = os.pwrite(part, piece, done)
                done, piece = done + written, piece[written:]
            transfer.advance(done, total)
    finally:
        os.close(part)
    transfer.go_on()
    if total is not None and done < total:
        raise web.ServerError(f"it ended after {done} of {total} bytes")
    if total is not None and done > total:
        forget(transfer.part)
        raise Fault(f"the server said {total} bytes and sent {done}", _LOOK, retryable=False)


def refusal(error: urllib.error.HTTPError) -> Fault:
    """The meaning of an answer without a file."""
    if HTTPStatus.MULTIPLE_CHOICES <= error.code < HTTPStatus.BAD_REQUEST:
        why = plain(str(error.reason).partition("\n")[0])
        return Fault(f"the server sends us elsewhere, which is not followed: {why}", _LOOK, retryable=False)
    hint = "try again later" if error.code in _PASSING else _LOOK
    return Fault(f"the server answered {error.code} {plain(error.reason)}", hint, retryable=error.code in _PASSING)


def _validator(response: http.client.HTTPResponse) -> str | None:
    """How the server names this very file: a strong ETag, or else when it changed last."""
    entity_tag = response.headers.get("ETag", "")
    if entity_tag.startswith('"'):
        return entity_tag
    return response.headers.get("Last-Modified")


def _remember(source: str, part: Path, response: http.client.HTTPResponse, total: int | None) -> None:
    """Write down what the next try needs to go on."""
    validator = _validator(response)
    if validator is None:
        forget(part)
    else:
        sends = response.status == HTTPStatus.PARTIAL_CONTENT or response.headers.get("Accept-Ranges") == "bytes"
        begun = _Begun(_digest(source), _boot(), validator, total, sends)
        write_file(_beside(part), msgspec.json.encode(begun))


def _load(source: str, part: Path) -> tuple[_Begun | None, int]:
    """The record of an earlier try, and how many bytes it brought; none, if it is of no use."""
    try:
        begun = msgspec.json.decode(_beside(part).read_bytes(), type=_Begun)
        have_bytes = part.lstat().st_size
    except (FileNotFoundError, msgspec.DecodeError):
        return None, 0
    fits = begun.source == _digest(source) and begun.boot == _boot() and have_bytes <= (begun.total_bytes or have_bytes)
    return (begun, have_bytes) if fits and have_bytes else (None, 0)


def _digest(source: str) -> str:
    """A URL may have a password, which is not written down."""
    return hashlib.sha256(source.encode()).hexdigest()


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _beside(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")
