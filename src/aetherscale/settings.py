"""The settings of a node and of the programs that talk to it, read once and handed down.

Flags stand over the environment over a file over defaults:

    flag             environment               file (TOML)          default
    --state-dir      AETHERSCALE_STATE_DIR     state-dir            /var/lib/aetherscale for root, else
                                                                    $XDG_STATE_HOME/aetherscale
    --node           AETHERSCALE_NODE          node                 the one of the log that is there, else the host's
                                                                    name, made into a valid one
    --nats           AETHERSCALE_NATS          nats                 a server of our own on loopback
                     (also AETHERSCALE_NATS_URL)
    --nats-creds     AETHERSCALE_NATS_CREDS    nats-creds           none
    --nats-nkey      AETHERSCALE_NATS_NKEY     nats-nkey            none
    --nats-token-file  AETHERSCALE_NATS_TOKEN_FILE  nats-token-file  none
    --tenant         AETHERSCALE_TENANT        tenant               default
    --accelerator    AETHERSCALE_ACCELERATOR   accelerator          auto
    --supervisor     AETHERSCALE_SUPERVISOR    supervisor           auto
    --allow-unisolated  AETHERSCALE_ALLOW_UNISOLATED  allow-unisolated  false
    --cache-dir      AETHERSCALE_CACHE_DIR     cache-dir            cache in the state directory
    --http, --no-http  AETHERSCALE_HTTP       http                 127.0.0.1:8470; "none" for no HTTP
    --stream-max-bytes  AETHERSCALE_STREAM_MAX_BYTES  stream-max-bytes  1G
    --image-dirs     AETHERSCALE_IMAGE_DIRS    image-dirs           none
    --image-networks AETHERSCALE_IMAGE_NETWORKS image-networks      none
    --image-catalogue AETHERSCALE_IMAGE_CATALOGUE image-catalogue   none
                     AETHERSCALE_PUBLIC_BRIDGE public-bridge     br0
    --simulated      AETHERSCALE_SIMULATED     simulated            false
                     AETHERSCALE_RUN_DIR       run-dir              none; the service's is /run/aetherscale
    --config         AETHERSCALE_CONFIG                             /etc/aetherscale/aetherscale.toml for root, else
                                                                    $XDG_CONFIG_HOME/aetherscale/aetherscale.toml
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from msgspec import Struct

from aetherscale import places
from aetherscale.httpaddress import HTTP, NO_HTTP, HttpAddress, http_address
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.names import DEVICE_NAME_RULE, NAME_RULE, is_device_name, is_name, name_like
from aetherscale.kernel.subjects import DEFAULT_TENANT, SYSTEM
from aetherscale.textfile import MARK, Unreadable, read_text

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

T = TypeVar("T")

Accelerator = Literal["auto", "kvm", "tcg"]
ACCELERATORS: tuple[Accelerator, ...] = ("auto", "kvm", "tcg")
Supervision = Literal["auto", "systemd", "detached"]
SUPERVISORS: tuple[Supervision, ...] = ("auto", "systemd", "detached")

NAMES = (
    "state-dir", "node", "nats", "nats-creds", "nats-nkey", "nats-token-file", "tenant", "accelerator", "supervisor",
    "allow-unisolated", "cache-dir", "http", "stream-max-bytes", "image-dirs", "image-networks", "image-catalogue",
    "public-bridge", "simulated", "run-dir",
)  # fmt: skip
"""The settings that flags, the environment and the file share."""

PUBLIC_BRIDGE = "br0"
STREAM_MAX_BYTES = 1024**3
LEAST_STREAM_BYTES = 16 * 1024**2
"""Room for a few of the largest events: with less, the copy could not be distinguished from a broken one."""

MAX_FILE_BYTES = 1024**2
"""A file of settings has a few lines; a device or a disk image, which has no end, is none."""

_SIZE = re.compile(r"(?P<amount>[0-9]{1,18})(?P<unit>[KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_PREFIX = "AETHERSCALE_"
_OTHER_NAMES = {"AETHERSCALE_NATS": "AETHERSCALE_NATS_URL"}
_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}


class Settings(Struct, frozen=True):
    """The settings of a node, and of a program that talks to it."""

    state_dir: Path
    node: str
    """The name of the node; default: the host's name, made into a valid one."""
    is_named: bool = True
    """Whether the name was given; else a log that is there already has its own."""
    nats_url: str | None = None
    """An outside NATS server; None for one of our own on loopback. May have a password or a token in it."""
    nats_files: Mapping[str, str] = {}
    """Where its credentials are kept: `creds`, `nkey` or `token-file`, with the path."""
    http: HttpAddress | None = None
    """Where the node takes requests over HTTP; None for nowhere."""
    stream_max_bytes: int = STREAM_MAX_BYTES
    """The most bytes of the copy of the log on the NATS server; beyond it the oldest events go first."""
    accelerator: Accelerator = "auto"
    supervisor: Supervision = "auto"
    """The supervisor of the processes of VMs: docs/supervision.md."""
    image_dirs: tuple[Path, ...] = ()
    """Below which directories images may be imported from by their path."""
    image_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Which networks images may be downloaded from, beside all public addresses."""
    image_catalogue: str | None = None
    """The operator's catalogue of images: a path, or an http or https URL; None for the shipped one alone."""
    public_bridge: str = PUBLIC_BRIDGE
    """The bridge of the host that leads to the network that the host itself is in."""
    allow_unisolated: bool = False
    """Whether a VM starts where QEMU would run as root or as the node's own user."""
    simulated: bool = False
    """Whether VMs are simulated: nothing on the host is touched but the state directory."""
    tenant: str = DEFAULT_TENANT
    """The tenant whose objects the client commands mean."""
    cache: Path | None = None
    """Where downloaded packages are kept, if not in the state directory."""

    is_default: bool = False
    """Whether the state directory is the default one."""
    run_dir: Path | None = None
    """The directory of a second `nats.json` for the owner's group; None for none."""

    @property
    def cache_dir(self) -> Path:
        """Where downloaded packages are kept."""
        return self.cache or self.state_dir / "cache"


def load_settings(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """The settings by flags (named as in the table above; absent, None and False count as not given) and the rest.

    Raises `Refused` (400) that names the setting, where it stands, and what it should be.
    """
    given = dict(_from_file(flags.get("config"), environ))
    if flags.get("no-http"):
        flags = {**flags, "http": NO_HTTP}
    for name in NAMES:
        variable = _PREFIX + name.upper().replace("-", "_")
        for known in (_OTHER_NAMES.get(variable, variable), variable):
            if environ.get(known):
                given[name] = (environ[known], known)
        if flags.get(name):
            given[name] = (flags[name], f"--{name}")
    cache = _text(given, "cache-dir")
    node = _name(given, "node")
    run_dir = _text(given, "run-dir")
    nats_url = _text(given, "nats")
    return Settings(
        state_dir=_directory(_text(given, "state-dir") or str(places.state_dir(environ)), "state-dir"),
        node=node or places.node_name(os.uname().nodename),
        is_named=node is not None,
        nats_url=nats_url,
        nats_files=_nats_files(given, nats_url),
        accelerator=_one_of(given, "accelerator", ACCELERATORS),
        supervisor=_one_of(given, "supervisor", SUPERVISORS),
        http=http_address(_text(given, "http") or HTTP, given.get("http", ("", ""))[1]),
        stream_max_bytes=_stream_max_bytes(given),
        image_dirs=tuple(Path(os.path.abspath(each)) for each in _list(given, "image-dirs", ":")),
        image_networks=_networks(given),
        image_catalogue=_text(given, "image-catalogue"),
        public_bridge=_device(given, "public-bridge") or PUBLIC_BRIDGE,
        allow_unisolated=_truth(given, "allow-unisolated"),
        simulated=_truth(given, "simulated"),
        tenant=_name(given, "tenant") or DEFAULT_TENANT,
        cache=_directory(cache, "cache-dir") if cache else None,
        is_default="state-dir" not in given,
        run_dir=_directory(run_dir, "run-dir") if run_dir else None,
    )


def _directory(path: str, name: str) -> Path:
    """Its absolute path, which a node has to be able to write in JSON. Raises `Refused` (400)."""
    try:
        full = os.path.abspath(path)
    except FileNotFoundError:
        raise Refused(
            Reason.BAD_REQUEST,
            f"settings: {name}: got {path!r}, and the working directory is gone",
            field=name,
            remedy="give a full path",
        ) from None
    if not _is_utf8(full):
        raise Refused(Reason.BAD_REQUEST, f"settings: {name}: got {full!r}, expected a path in UTF-8", field=name)
    return Path(full)


def _nats_files(given: Mapping[str, tuple[Any, str]], nats_url: str | None) -> Mapping[str, str]:
    """The files that the credentials for an outside server are kept in. Raises `Refused` (400)."""
    files = {}
    for kind in ("creds", "nkey", "token-file"):
        name = f"nats-{kind}"
        path = _text(given, name)
        if path is not None:
            if nats_url is None:
                where = given[name][1]
                raise Refused(
                    Reason.BAD_REQUEST, f"settings: {where} is for another NATS server: name it with --nats", field=name
                )
            files[kind] = str(_directory(path, name))
    return files


def _is_utf8(text: str) -> bool:
    """Whether every byte that the host has given us was a character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _from_file(flag: str | None, environ: Mapping[str, str]) -> Mapping[str, tuple[Any, str]]:
    """Each setting of the file, with where it stands. A file that was asked for has to be there."""
    asked = flag or environ.get(f"{_PREFIX}CONFIG")
    path = asked or str(places.config(environ))
    try:
        text = read_text(path, MAX_FILE_BYTES).removeprefix(MARK)
    except Unreadable as wrong:
        if not wrong.is_missing:
            raise Refused(
                Reason.BAD_REQUEST, f"settings: {path} {wrong}", field="config", remedy=wrong.remedy
            ) from None
        if asked:
            raise Refused(Reason.BAD_REQUEST, f"settings: there is no file {path}", field="config") from None
        return {}
    import tomllib

    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise Refused(Reason.BAD_REQUEST, f"settings: {path} is nested too deeply", field="config") from None
    except ValueError as broken:
        raise Refused(Reason.BAD_REQUEST, f"settings: {path} is not TOML: {broken}", field="config") from None
    for name in table:
        if name not in NAMES:
            raise Refused(
                Reason.BAD_REQUEST,
                f"settings: {path}: no such setting: {name!r}",
                field=name,
                remedy=f"one of {', '.join(NAMES)}",
            )
    return {name: (value, f"{name} in {path}") for name, value in table.items()}


def _text(given: Mapping[str, tuple[Any, str]], name: str) -> str | None:
    if name not in given:
        return None
    value, where = given[name]
    if not isinstance(value, str) or not value or "\x00" in value:
        raise Refused(Reason.BAD_REQUEST, f"settings: {where}: got {repr(value)[:80]}, expected text", field=name)
    if not _is_utf8(value):
        raise Refused(Reason.BAD_REQUEST, f"settings: {where}: got {value[:80]!r}, expected UTF-8", field=name)
    return value


def _name(given: Mapping[str, tuple[Any, str]], name: str) -> str | None:
    value = _text(given, name)
    if value is not None and (not is_name(value) or value == SYSTEM):
        like = name_like(value)
        raise Refused(
            Reason.BAD_REQUEST,
            f"settings: {given[name][1]}: got {value[:80]!r}, expected a name other than {SYSTEM!r}: {NAME_RULE}",
            field=name,
            remedy=f"perhaps {like}" if like and like != SYSTEM else "",
        )
    return value


def _one_of(given: Mapping[str, tuple[Any, str]], name: str, choices: tuple[T, ...]) -> T:
    """One of some words, of which the first is the default."""
    value = _text(given, name)
    for known in choices:
        if value in (known, None):
            return known
    where = given[name][1]
    expected = ", ".join(str(choice) for choice in choices)
    raise Refused(Reason.BAD_REQUEST, f"settings: {where}: got {value!r}, expected one of {expected}", field=name)


def _stream_max_bytes(given: Mapping[str, tuple[Any, str]]) -> int:
    value, where = given.get("stream-max-bytes", (STREAM_MAX_BYTES, ""))
    found = _SIZE.fullmatch(str(value))
    size = int(found["amount"]) * _UNITS[found["unit"].lower()] if found and not isinstance(value, bool) else 0
    if not LEAST_STREAM_BYTES <= size < 2**63:
        expected = f"a number of bytes, or a size like 512M; at least {LEAST_STREAM_BYTES // 1024**2}M"
        got = repr(value)[:80]
        raise Refused(
            Reason.BAD_REQUEST, f"settings: {where}: got {got}, expected {expected}", field="stream-max-bytes"
        )
    return size


def _list(given: Mapping[str, tuple[Any, str]], name: str, separator: str) -> list[str]:
    """A list of texts, or one text with a separator between them."""
    value, where = given.get(name, ("", ""))
    if isinstance(value, str):
        value = [part.strip() for part in value.split(separator) if part.strip()]
    if not isinstance(value, list) or not all(isinstance(part, str) and part and "\x00" not in part for part in value):
        expected = f"texts with {separator!r} between, or in a file a list of texts"
        raise Refused(Reason.BAD_REQUEST, f"settings: {where}: got {value!r}, expected {expected}", field=name)
    return value


def _networks(given: Mapping[str, tuple[Any, str]]) -> tuple[IPv4Network | IPv6Network, ...]:
    name = "image-networks"
    texts = _list(given, name, ",")
    if not texts:
        return ()
    import ipaddress  # here, since it takes a tenth of the time of a start

    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as wrong:
        where = given[name][1]
        raise Refused(
            Reason.BAD_REQUEST, f"settings: {where}: {wrong}, expected networks like 10.0.0.0/8", field=name
        ) from None


def _device(given: Mapping[str, tuple[Any, str]], name: str) -> str | None:
    """The name of a network device. Raises `Refused` (400)."""
    text = _text(given, name)
    if text is not None and not is_device_name(text):
        where = given[name][1]
        raise Refused(
            Reason.BAD_REQUEST, f"settings: {where}: got {text[:80]!r}, expected {DEVICE_NAME_RULE}", field=name
        )
    return text


def _truth(given: Mapping[str, tuple[Any, str]], name: str) -> bool:
    value, where = given.get(name, (False, ""))
    if isinstance(value, str):
        value = _TRUTH.get(value.lower(), value)
    if not isinstance(value, bool):
        raise Refused(Reason.BAD_REQUEST, f"settings: {where}: got {value!r}, expected true or false", field=name)
    return value
