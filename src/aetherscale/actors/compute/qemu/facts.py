"""What a guest says of itself, by its agent: readings, none of which is trusted, all of them bounded."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from aetherscale.actors.compute.model.guestfacts import GuestDisk, GuestFacts, InterfaceAddress
from aetherscale.actors.compute.qemu.agent import AgentPort, AgentRefused, AgentSilent

FACTS_S: Final = 1.5
"""For all that is asked of one guest together; what it has not said by then is not known."""
MOST_ADDRESSES: Final = 64
MOST_DISKS: Final = 32
MOST_CHARACTERS: Final = 128
_MOST_LOAD: Final = 1e6
_MOST_BYTES: Final = 2**63
_LOAD_FILE: Final = "/proc/loadavg"


async def facts(agent: AgentPort | None) -> GuestFacts:
    """Ask for all of it, for at most `FACTS_S`. Raises nothing."""
    if agent is None:
        return GuestFacts("absent")
    found: dict[str, Any] = {}
    readings = (_versions, _os, _host_name, _addresses, _disks, _load)
    state = "answers"
    try:
        async with asyncio.timeout(FACTS_S):
            for reading in readings:
                with suppress(AgentRefused):  # an old agent, or one that may not
                    found |= await reading(agent)
    except (AgentSilent, TimeoutError):
        state = "silent"
    return GuestFacts(state, **found)  # type: ignore[arg-type]


async def _versions(agent: AgentPort) -> Mapping[str, Any]:
    return {"agent_version": _text(_member(await agent.ask("guest-info"), "version"))}


async def _os(agent: AgentPort) -> Mapping[str, Any]:
    said = await agent.ask("guest-get-osinfo")
    return {"os": _text(_member(said, "pretty-name")), "kernel": _text(_member(said, "kernel-release"))}


async def _host_name(agent: AgentPort) -> Mapping[str, Any]:
    return {"host_name": _text(_member(await agent.ask("guest-get-host-name"), "host-name"))}


async def _addresses(agent: AgentPort) -> Mapping[str, Any]:
    found = []
    for interface in _rows(await agent.ask("guest-network-get-interfaces")):
        name = _text(_member(interface, "name"))
        for address in _rows(_member(interface, "ip-addresses")):
            ip = _text(_member(address, "ip-address"))
            if name and name != "lo" and ip and re.fullmatch(r"[0-9a-fA-F:.]{2,45}", ip):
                found.append(InterfaceAddress(name, ip))
    return {"addresses": found[:MOST_ADDRESSES]}


async def _disks(agent: AgentPort) -> Mapping[str, Any]:
    found = []
    for disk in _rows(await agent.ask("guest-get-fsinfo")):
        place, used, total = (_member(disk, name) for name in ("mountpoint", "used-bytes", "total-bytes"))
        if (where := _text(place)) and _is_count(used) and _is_count(total):
            found.append(GuestDisk(where, used, total))
    return {"disks": found[:MOST_DISKS]}


async def _load(agent: AgentPort) -> Mapping[str, Any]:
    """Three numbers; agents before QEMU 10 do not tell them, and are asked for the file that has them."""
    try:
        said = await agent.ask("guest-get-load")
        numbers = [_member(said, name) for name in ("load1m", "load5m", "load15m")]
    except AgentRefused:
        numbers = list(_numbers(await _load_file(agent)))[:3]
    is_load = len(numbers) == 3 and all(
        isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number < _MOST_LOAD
        for number in numbers
    )
    return {"load": [float(number) for number in numbers]} if is_load else {}


async def _load_file(agent: AgentPort) -> bytes:
    handle = await agent.ask("guest-file-open", path=_LOAD_FILE)
    if not _is_count(handle):
        raise AgentSilent("it gave no handle for a file")
    try:
        said = _member(await agent.ask("guest-file-read", handle=handle, count=256), "buf-b64")
    finally:
        await agent.ask("guest-file-close", handle=handle)
    try:
        return base64.b64decode(said, validate=True) if isinstance(said, str) else b""
    except (binascii.Error, ValueError):
        raise AgentSilent("what it read is not base64") from None


def _numbers(data: bytes) -> Iterator[float]:
    for word in data.split():
        if re.fullmatch(rb"[0-9]{1,7}(\.[0-9]{1,3})?", word):
            yield float(word)


def _member(said: Any, name: str) -> Any:
    return said.get(name) if isinstance(said, dict) else None


def _rows(said: Any) -> list[Any]:
    return said[: MOST_ADDRESSES * 4] if isinstance(said, list) else []


def _text(said: Any) -> str | None:
    """A text without what would drive a terminal; None for what is none."""
    if not isinstance(said, str):
        return None
    return "".join(each if each.isprintable() else "?" for each in said[:MOST_CHARACTERS]) or None


def _is_count(said: Any) -> bool:
    return isinstance(said, int) and not isinstance(said, bool) and 0 <= said < _MOST_BYTES
