"""A GET whose waiting is bounded and can be ended from outside: urllib, with the parts of it that one download needs.

Redirections lead to http and https only, never from https to http, and a limited number of times. Every connection,
also that of a redirection, leads to an address that is allowed, or to the proxy that the environment names. A name and
a password in the URL are sent to its own server alone.
"""

from __future__ import annotations

import base64
import http.client
import io
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from typing import IO, Any, Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from aetherscale.actors.images.fetching import addresses, words
from aetherscale.actors.images.fetching.transfer import Limits, Transfer
from aetherscale.kernel.fault import Fault

_SCHEMES: Final = ("http", "https")
_NONE: Final = "expected http:// or https://, the name of a host, and after a colon a port from 1 to 65535 if need be"
_SAFE: Final = "%/?:@!$&'()*+,;=~-._"


class ServerError(Exception):
    """The server cannot be reached, or cannot be talked to: what happened, and what to do (`remedy`)."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy


class NoAddress(ValueError):
    """A URL that is none, in words."""


def get(url: str, headers: Mapping[str, str], transfer: Transfer, limits: Limits) -> http.client.HTTPResponse:
    """The answer to a GET, with its body still to be read. The transfer's `stop` ends the waiting.

    Raises urllib's HTTPError for a status that is not 2xx, ServerError, NoAddress, and Fault for a certificate that is
    not trusted.
    """
    plain, authorization = _split(url)
    request = urllib.request.Request(plain, headers=dict(headers))  # noqa: S310 - the opener knows http and https only
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Http(transfer, limits),
        _Https(transfer, limits),
        _Redirections(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    transfer.go_on()
    try:
        response = opener.open(request, timeout=limits.connect_s)
    except addresses.Forbidden as forbidden:
        raise Fault(
            f"{str(forbidden)[:200]} has no address that this node may download from",
            "download it yourself and import the file; or the operator allows it: image-networks",
            retryable=False,
        ) from forbidden
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Fault(
                f"the server's certificate is not trusted: {error.reason.verify_message}",
                "look at the address, and at this host's certificates and clock",
                retryable=False,
            ) from error
        raise _failed(error.reason if isinstance(error.reason, OSError) else error, limits) from error
    except http.client.InvalidURL as error:
        raise NoAddress(_NONE) from error
    except (OSError, http.client.HTTPException) as error:
        raise _failed(error, limits) from error
    except ValueError as error:  # a host that no name can be, a port that is no number
        raise NoAddress(_NONE) from error
    assert isinstance(response, http.client.HTTPResponse)
    return response


def read(response: http.client.HTTPResponse, most_bytes: int, limits: Limits) -> bytes:
    """The next bytes of the body, none at its end. Raises ServerError."""
    try:
        return response.read1(most_bytes)
    except (OSError, http.client.HTTPException) as error:
        raise _failed(error, limits) from error


def _failed(error: OSError | http.client.HTTPException, limits: Limits) -> ServerError:
    trouble = words.talking(error, limits.idle_s)
    return ServerError(trouble.what, trouble.remedy)


def _split(url: str) -> tuple[str, str | None]:
    """The URL without name and password, in ASCII, and the header that those become."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise NoAddress(_NONE) from error
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise NoAddress("it is not an http or https URL")
    credentials, _, host = parts.netloc.rpartition("@")
    plain = urlunsplit((parts.scheme, host, quote(parts.path, safe=_SAFE), quote(parts.query, safe=_SAFE), ""))
    if not credentials:
        return plain, None
    return plain, "Basic " + base64.b64encode(unquote(credentials).encode()).decode()


def _connection(
    base: Callable[..., Any], transfer: Transfer, limits: Limits, proxy: bool, host: str, **options: Any
) -> Any:
    """A connection that can be ended from outside, and that waits for the server as long as it may once it is made."""
    connection = base(host, **options)
    connect = connection.connect

    def reach(target: tuple[str, int], *_: Any) -> socket.socket:
        try:
            if proxy:
                reached = socket.create_connection(target, limits.connect_s)
            else:
                reached = addresses.connect(target, limits.connect_s, limits.networks)
        except OSError as error:
            trouble = words.to_connect(error, *target, limits.connect_s)
            raise ServerError(f"the proxy: {trouble.what}" if proxy else trouble.what, trouble.remedy) from error
        try:
            transfer.watch(reached)  # before any word of TLS, which a server may draw out
        except BaseException:
            reached.close()
            raise
        return reached

    def connect_and_be_patient() -> None:
        connect()
        connection.sock.settimeout(limits.idle_s)

    connection._create_connection = reach
    connection.connect = connect_and_be_patient
    return connection


def _is_for_proxy(request: urllib.request.Request, limits: Limits) -> bool:
    """Whether a request is sent to a proxy, which looks up where it leads to. Raises `Forbidden`."""
    target = urlsplit(request.full_url)
    if request.host == target.netloc:
        return False
    addresses.require_for_proxy(target.hostname or "", limits.networks)
    return True


class _Http(urllib.request.HTTPHandler):
    def __init__(self, transfer: Transfer, limits: Limits) -> None:
        super().__init__()
        self._limits = limits
        self._make = partial(_connection, http.client.HTTPConnection, transfer, limits)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._make, _is_for_proxy(req, self._limits)), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, transfer: Transfer, limits: Limits) -> None:
        super().__init__()
        self._limits = limits
        self._make = partial(_connection, http.client.HTTPSConnection, transfer, limits)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        make = partial(self._make, _is_for_proxy(req, self._limits))
        return self.do_open(make, req, context=ssl.create_default_context())


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Redirections that are followed."""

    inf_msg = "they lead round, or on and on\n"

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in _SCHEMES or (before, after) == ("https", "http"):
            raise urllib.error.HTTPError(req.full_url, code, f"from {before} to {after}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any
    ) -> http.client.HTTPResponse | None:
        # The body, which urllib would read to its end, however long that is.
        fp.close()
        if "location" not in headers:
            raise urllib.error.HTTPError(req.full_url, code, "without saying where to", headers, io.BytesIO())
        return super().http_error_302(req, io.BytesIO(), code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302
