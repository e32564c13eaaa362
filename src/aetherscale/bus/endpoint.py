"""Where a broker is and who we are there; how a node tells its clients. Imports nothing that takes time to import."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct

from aetherscale.statedir import write_file

FILE_NAME: Final = "nats.json"
SHARED_MODE: Final = 0o640
DEFAULT_PORT: Final = 4222


class Endpoint(Struct, frozen=True, omit_defaults=True):
    """The fields are those of the `nats` program's context files, and so is the JSON."""

    url: str
    """One URL without credentials, or several of one cluster with commas between."""
    user: str = ""
    password: str = ""
    description: str = ""


def parse_endpoint(url: str, user: str = "", password: str = "") -> Endpoint:
    """The endpoint of a URL that may carry credentials; they are taken out of it, so that it can be shown and logged.

    Raises ValueError, which does not repeat the credentials, for what is no `nats://` or `tls://` URL with a host.
    """
    urls: list[str] = []
    for part in url.split(","):
        parts = urlsplit(part.strip() if "://" in part else f"nats://{part.strip()}")
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise ValueError(f"NATS URL: got {parts.scheme}://{parts.hostname or ''}, expected nats://HOST:PORT")
        user = user or unquote(parts.username or "")
        password = password or unquote(parts.password or "")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        urls.append(f"{parts.scheme}://{host}:{parts.port or DEFAULT_PORT}")
    return Endpoint(",".join(urls), user, password)


def read_endpoint(state_dir: Path) -> Endpoint:
    """What the node of a state directory has written for its clients.

    Raises FileNotFoundError where no node has, PermissionError for another user's, ValueError for a damaged file.
    """
    path = state_dir / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Endpoint)
    except msgspec.DecodeError as broken:
        raise ValueError(f"{path}: {broken}; delete it and restart the node, which writes it anew") from None


def write_endpoint(state_dir: Path, endpoint: Endpoint, run_dir: Path | None = None) -> None:
    """Tell the clients; the file is whole at every moment, and only its owner can read it.

    With `run_dir` there is another one, which the owner's group can read too.
    """
    content = msgspec.json.format(msgspec.json.encode(endpoint)) + b"\n"
    write_file(state_dir / FILE_NAME, content)
    if run_dir is not None:
        write_file(run_dir / FILE_NAME, content, SHARED_MODE)
