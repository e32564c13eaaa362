"""Where a broker is and who we are there; the file in which a node publishes both to its clients. Imports nothing that
takes time to import.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from aetherscale.bus import credentials
from aetherscale.statedir import write_file

FILE_NAME: Final = "nats.json"
SHARED_MODE: Final = 0o640
DEFAULT_PORT: Final = 4222

_BLANK = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029]")
_HOST = re.compile(r"[\w.-]{1,253}|[0-9A-Fa-f:.]{2,45}(?:%[\w.-]{1,15})?")


class Endpoint(Struct, frozen=True, omit_defaults=True):
    """The fields are those of the `nats` program's context files, and so is the JSON."""

    url: str
    """One URL without credentials, or several of one cluster with commas between."""
    user: str = ""
    password: str = ""
    description: str = ""
    token: str = ""
    creds: str = ""
    """The path of a file with a JWT and a seed; see `credentials.py`."""
    nkey: str = ""
    """The path of a file with a seed."""


class Server(Struct, frozen=True):
    """One server of an endpoint. `host` is a name or an address, an IPv6 one without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """As it can be shown and logged."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_endpoint(url: str, user: str = "", password: str = "", token: str = "") -> Endpoint:
    """The endpoint of a URL that may carry credentials; they are taken out of it, so that it can be shown and logged.

    `nats://USER:PASSWORD@HOST` or, as other NATS programs have it, `nats://TOKEN@HOST`. The other arguments go before
    what stands in a URL. Raises ValueError, which never repeats what may be a credential, for what is no `nats://` or
    `tls://` URL with a host, and for servers with different credentials.
    """
    found: list[tuple[Server, tuple[str, str, str]]] = []
    for part in url.split(","):
        server, credentials = _parse(part.strip())
        if any(credentials) and found and not any(found[0][1]):
            raise ValueError("NATS URL: expected the credentials in the first URL; write a comma in one as %2C")
        if any(credentials) and found and credentials != found[0][1]:
            raise ValueError("NATS URL: got several with different credentials, expected the same in each")
        found.append((server, credentials))
    if not (user or password or token):
        user, password, token = found[0][1]
    return Endpoint(",".join(server.url for server, _ in found), user, password, token=token)


def outside(url: str, files: Mapping[str, str]) -> Endpoint:
    """The endpoint of a server that settings name, with secrets that are kept in files: `creds`, `nkey`, `token-file`.

    Raises ValueError as `parse_endpoint` does, and for a file that cannot be used; never says what is in it.
    """
    endpoint = parse_endpoint(url)
    if files and (len(files) > 1 or endpoint.user or endpoint.token):
        given = [f"--nats-{name}" for name in files] + (["the URL"] if endpoint.user or endpoint.token else [])
        raise ValueError(f"NATS credentials: got {' and '.join(given)}, expected one of them")
    if "token-file" in files:
        return replace(endpoint, token=credentials.read_token(files["token-file"]))
    credentials.check(files.get("creds", ""), files.get("nkey", ""))
    return replace(endpoint, creds=files.get("creds", ""), nkey=files.get("nkey", ""))


def servers(endpoint: Endpoint) -> list[Server]:
    """The servers of an endpoint. Raises ValueError where its URL is none."""
    return [_parse(part.strip())[0] for part in endpoint.url.split(",")]


def _parse(url: str) -> tuple[Server, tuple[str, str, str]]:
    """The server of one URL, and the user, password and token in it."""
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        host, port = unquote(parts.hostname or ""), parts.port
    except ValueError:
        raise _no_url("a port that is not a number from 1 to 65535, or an address without [ ]") from None
    if _BLANK.search(url):
        raise _no_url("a blank or a control character")
    if parts.scheme not in ("nats", "tls"):
        raise _no_url("another scheme")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _no_url("more than a host and a port; in a password, write / as %2F, ? as %3F and # as %23")
    if port == 0 or not _HOST.fullmatch(host):
        raise _no_url("a port 0" if port == 0 else "no host, or one with characters that no host has")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if password and not user:
        raise _no_url("a password without a user")
    credentials = ("", "", user) if parts.password is None else (user, password, "")
    return Server(parts.scheme, host, port or DEFAULT_PORT), credentials


def _no_url(got: str) -> ValueError:
    return ValueError(f"NATS URL: got {got}; expected nats://[USER:PASSWORD@]HOST[:PORT] or nats://TOKEN@HOST[:PORT]")


def read_endpoint(state_dir: Path) -> Endpoint:
    """The endpoint that the node of a state directory has written for its clients.

    Raises FileNotFoundError where no node has, PermissionError for another user's, ValueError for a damaged file.
    """
    path = state_dir / FILE_NAME
    try:
        told = msgspec.json.decode(path.read_bytes(), type=Endpoint)
        found = parse_endpoint(told.url, told.user, told.password, told.token)
        return replace(found, description=told.description, creds=told.creds, nkey=told.nkey)
    except ValueError as broken:
        raise ValueError(f"{path}: {broken}; delete it and restart the node, which writes it anew") from None


def write_endpoint(state_dir: Path, endpoint: Endpoint, run_dir: Path | None = None) -> None:
    """Write the file for clients; it is whole at every moment, and only its owner can read it.

    With `run_dir` there is another one, which the owner's group can read too.
    """
    content = msgspec.json.format(msgspec.json.encode(endpoint)) + b"\n"
    write_file(state_dir / FILE_NAME, content)
    if run_dir is not None:
        write_file(run_dir / FILE_NAME, content, SHARED_MODE)
