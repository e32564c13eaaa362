"""What a guest says of itself, by an agent that is old, absent, slow, or lies."""

from __future__ import annotations

import base64
import json
import tracemalloc
from typing import Any

import pytest

from aetherscale.actors.compute.model.guestfacts import GuestDisk, GuestFacts, InterfaceAddress
from aetherscale.actors.compute.qemu import agent
from aetherscale.actors.compute.qemu import facts as module
from aetherscale.actors.compute.qemu.facts import MOST_ADDRESSES, MOST_CHARACTERS, MOST_DISKS, facts
from tests.unit.actors.compute.qemu.test_guest_agent import guest, honest, returned

ANSWERS: dict[str, Any] = {
    "guest-info": {"version": "7.2.22", "supported_commands": []},
    "guest-get-osinfo": {"pretty-name": "Debian GNU/Linux 12", "kernel-release": "6.1.0"},
    "guest-get-host-name": {"host-name": "web"},
    "guest-network-get-interfaces": [
        {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1"}]},
        {"name": "eth0", "ip-addresses": [{"ip-address": "10.0.2.15"}, {"ip-address": "fe80::1"}]},
        {"name": "eth1"},
    ],
    "guest-get-fsinfo": [{"mountpoint": "/", "used-bytes": 1, "total-bytes": 2}, {"mountpoint": "/old"}],
    "guest-file-open": 7,
    "guest-file-read": {"buf-b64": base64.b64encode(b"0.10 0.20 12.30 1/99 1234\n").decode()},
    "guest-file-close": {},
    "guest-ping": {},
}
ALL = GuestFacts(
    "answers", "7.2.22", "Debian GNU/Linux 12", "6.1.0", "web",
    [InterfaceAddress("eth0", "10.0.2.15"), InterfaceAddress("eth0", "fe80::1")],
    [0.1, 0.2, 12.3], [GuestDisk("/", 1, 2)],
)  # fmt: skip


def says(**more: Any) -> Any:
    """An agent that answers so; `None` is one that never does, an exception one that cannot."""
    answers = {**ANSWERS, **{name.replace("_", "-"): value for name, value in more.items()}}

    def answer(request: dict[str, Any]) -> bytes | None:
        command = request["execute"]
        if command == "guest-sync-delimited":
            return honest(request)
        if command not in answers:
            return b'{"error": {"class": "CommandNotFound", "desc": "no such command"}}\n'
        said = answers[command]
        return said if isinstance(said, bytes) else None if said is None else returned(said)

    return answer


async def test_all_that_an_agent_says_is_told() -> None:
    async with guest(says()) as (fake, port):
        assert await facts(port) == ALL
        assert fake.asked[-1] == "guest-file-close"


async def test_an_agent_that_tells_the_load_is_not_asked_for_a_file() -> None:
    async with guest(says(guest_get_load={"load1m": 1, "load5m": 0.5, "load15m": 0})) as (fake, port):
        assert (await facts(port)).load == [1.0, 0.5, 0.0]
        assert "guest-file-open" not in fake.asked


async def test_without_an_agent_nothing_is_known() -> None:
    assert await facts(None) == GuestFacts("absent")


async def test_what_an_old_agent_cannot_tell_is_not_known_and_the_rest_is() -> None:
    def old(request: dict[str, Any]) -> bytes | None:
        knows = ("guest-sync-delimited", "guest-info", "guest-network-get-interfaces")
        return says()(request) if request["execute"] in knows else b'{"error": {"desc": "no such command"}}\n'

    async with guest(old) as (_, port):
        assert await facts(port) == GuestFacts("answers", "7.2.22", addresses=ALL.addresses)


async def test_an_agent_that_hangs_is_told_as_silent_with_what_it_has_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FACTS_S", 0.3)
    monkeypatch.setattr(agent, "CALL", agent.CALL._replace(time_s=600.0))
    async with guest(says(guest_get_host_name=None)) as (_, port):
        assert await facts(port) == GuestFacts("silent", "7.2.22", "Debian GNU/Linux 12", "6.1.0")


DEEP = b"[" * 60_000 + b"\n"


@pytest.mark.parametrize(
    "said",
    [b"no json\n", b"\xff\xff\xff\n", DEEP, b'{"return": ' + b'{"a":' * 9_000 + b"\n",
     b'{"return": 1' + b"0" * 5000 + b"}\n"],
    ids=["no JSON", "0xFF", "nested", "nested objects", "a huge number"],
)  # fmt: skip
async def test_an_answer_that_is_none_makes_the_agent_silent(said: bytes) -> None:
    async with guest(says(guest_get_osinfo=said)) as (_, port):
        told = await facts(port)
        assert (told.agent, told.os) == ("silent", None)
        await port.ping()


WRONG: list[Any] = [
    None,
    True,
    -1,
    10**30,
    1.5,
    "x",
    [],
    {},
    [[]],
    [{}],
    [{"name": 1, "ip-addresses": "x"}],
    {"pid": []},
]


@pytest.mark.parametrize("wrong", [*WRONG, [{"name": "e", "ip-addresses": [{"ip-address": "\x1b[2J"}, 7]}]])
async def test_what_has_a_wrong_shape_is_not_known(wrong: Any) -> None:
    async with guest(says(**dict.fromkeys((name.replace("-", "_") for name in ANSWERS), wrong))) as (_, port):
        told = await facts(port)
    assert (told.os, told.kernel, told.host_name, told.load) == (None, None, None, None)
    assert (told.addresses or []) == []
    assert (told.disks or []) == []


async def test_what_a_guest_says_is_bounded_and_drives_no_terminal() -> None:
    many = [{"name": f"e{n}", "ip-addresses": [{"ip-address": "10.0.0.1"}]} for n in range(500)]
    disks = [{"mountpoint": f"/{n}", "used-bytes": 0, "total-bytes": 2**62} for n in range(300)]
    text = "\x1b]0;title\x07\n\r\u202e" + "x" * 10_000
    wild = says(guest_network_get_interfaces=many, guest_get_fsinfo=disks, guest_get_osinfo={"pretty-name": text})
    async with guest(wild) as (_, port):
        told = await facts(port)
    assert told.addresses is not None
    assert told.disks is not None
    assert told.os is not None
    assert (len(told.addresses), len(told.disks), len(told.os)) == (MOST_ADDRESSES, MOST_DISKS, MOST_CHARACTERS)
    assert told.os.isprintable()
    json.dumps(told.os)


async def test_what_is_no_base64_and_no_handle_does_no_harm() -> None:
    for wild in (says(guest_file_read={"buf-b64": "=" * 100}), says(guest_file_open="x"), says(guest_file_open=-1)):
        async with guest(wild) as (_, port):
            told = await facts(port)
            assert (told.agent, told.load, told.disks) == ("silent", None, ALL.disks)
            await port.ping()


async def test_a_flood_is_held_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "CALL", agent.CALL._replace(time_s=0.2))
    piece = b"x" * 65_536

    def flood(request: dict[str, Any]) -> bytes | None:
        if request["execute"] == "guest-sync-delimited":
            return honest(request)
        for _ in range(1000):  # 64 MiB, without an end of the line
            port.received(piece)
        return None

    async with guest(flood) as (_, port):
        tracemalloc.start()
        try:
            told = await facts(port)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert told == GuestFacts("silent")
    assert peak_bytes < 2 * 1024 * 1024


async def test_an_answer_that_comes_twice_is_not_that_to_the_next_question() -> None:
    def twice(request: dict[str, Any]) -> bytes | None:
        answer = says()(request) or b""
        return answer + answer if request["execute"] == "guest-get-osinfo" else answer

    async with guest(twice) as (_, port):
        told = await facts(port)
    assert told.host_name in ("web", None), "at worst it is not known"
    assert told.os == "Debian GNU/Linux 12"
