"""How the node asks a VDE switch for a port: the bytes of the protocol, and switches that do not keep to it."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from aetherscale.actors.compute import needs
from aetherscale.actors.compute.qemu import vde
from aetherscale.kernel.fault import Fault
from aetherscale.settings import Settings
from tests.support.vde_switches import ADDRESS, PretendSwitch, datagrams

VM = "0123456789abcdef"


def address(path: Path | str) -> bytes:
    return ADDRESS.pack(socket.AF_UNIX, str(path).encode())


async def test_a_port_is_a_request_of_version_3_and_lives_as_long_as_its_stream(tmp_path: Path) -> None:
    lab = tmp_path / "lab.ctl"
    switch = PretendSwitch(lambda own: address(lab / "001.5"))
    async with switch.listening(lab):
        with datagrams(lab / "001.5") as port:
            plug = await vde.plug_in(str(lab), VM)
            (request,) = switch.requests
            assert struct.unpack("=III", request[:12]) == (0xFEEDFACE, 3, 0)
            assert request[122:] == f"VM {VM}\0".encode()
            # Whoever connects to it by the address in the request is heard, and nobody else any more.
            own = ADDRESS.unpack(request[12:122])[1]
            assert own[:1] == b"\0"
            assert len(own) == 108
            port.connect(own)
            port.send(b"a frame for the guest")
            assert plug.frames.recv(100) == b"a frame for the guest"
            plug.frames.send(b"a frame of the guest")
            assert port.recv(100) == b"a frame of the guest"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger, pytest.raises(PermissionError):
                stranger.connect(own)
            assert switch.ports == 1
            frames, control = plug.filenos()
            assert {os.get_inheritable(each) for each in (frames, control)} == {False}
            plug.close()
            await asyncio.wait_for(switch.unplugged.wait(), 30)


async def test_two_ports_have_addresses_of_their_own(tmp_path: Path) -> None:
    lab = tmp_path / "lab.ctl"
    async with PretendSwitch(lambda own: address(lab / "1")).listening(lab) as switch:
        with datagrams(lab / "1"):
            for _ in range(2):
                (await vde.plug_in(str(lab), VM)).close()
    assert len({request[12:122] for request in switch.requests}) == 2


def elsewhere(tmp_path: Path, how: str) -> AbstractContextManager[object]:
    """A socket that is none of the switch's, to which its answer leads."""
    log = tmp_path / "log"
    if how == "link":
        (tmp_path / "lab.ctl").mkdir()
        (tmp_path / "lab.ctl" / "1").symlink_to(log)
    return datagrams(log)


@pytest.mark.parametrize("how", ["path", "link"])
async def test_a_switch_cannot_have_a_guest_write_to_another_program(tmp_path: Path, how: str) -> None:
    lab = tmp_path / "lab.ctl"
    answer = address(tmp_path / "log" if how == "path" else lab / "1")
    with elsewhere(tmp_path, how):
        async with PretendSwitch(lambda own: answer).listening(lab):
            with pytest.raises(Fault, match=r"it sent us to the socket .*/log', which is not in its own directory"):
                await vde.plug_in(str(lab), VM)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "it closed the connection, as no VDE switch does"),
        (b"\1\0/run", "did not answer within"),
        (ADDRESS.pack(socket.AF_INET, b"/run/x"), "did not answer as a VDE switch does"),
        (ADDRESS.pack(socket.AF_UNIX, b""), "did not answer as a VDE switch does"),
        (ADDRESS.pack(socket.AF_UNIX, b"\0abstract"), "did not answer as a VDE switch does"),
        (address("/nowhere/1"), "No such file or directory"),
    ],
)
async def test_what_is_no_switch_is_told_with_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, why: str
) -> None:
    monkeypatch.setattr(vde, "ANSWER_S", 0.2)
    lab = tmp_path / "lab.ctl"
    async with PretendSwitch(lambda own: answer or None).listening(lab) as switch:
        with pytest.raises(Fault, match=why) as fault:
            await vde.plug_in(str(lab), VM)
        assert fault.value.retryable
        assert f"the VDE switch at {lab} cannot be used: it gave the VM no port: " in fault.value.reason
        await asyncio.wait_for(switch.unplugged.wait(), 30)


def test_where_there_is_no_switch_the_remedy_makes_one(tmp_path: Path) -> None:
    lab = tmp_path / "lab 1"
    with pytest.raises(Fault, match=f"there is no VDE switch at {lab}: {lab}/ctl is missing") as fault:
        vde.require(str(lab))
    assert fault.value.remedy.startswith(f"apt-get install --no-install-recommends vde2; vde_switch -sock '{lab}'")
    assert fault.value.retryable


def test_what_is_there_and_no_switch_is_not_made_one(tmp_path: Path) -> None:
    """Of a directory, `vde_switch -sock /tmp` say, it takes the mode, and all of it at its end."""
    lab, file = tmp_path / "lab", tmp_path / "file"
    lab.mkdir()
    file.touch()
    for path in (lab, file):
        with pytest.raises(Fault, match=f"there is no VDE switch at {path}: .*something else is there") as fault:
            vde.require(str(path))
        assert fault.value.remedy.startswith("name the directory of a switch")
    (lab / "ctl").touch()
    with pytest.raises(Fault, match="nothing listens at"):
        vde.require(str(lab))


def test_a_switch_that_has_ended_is_none(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(tmp_path / "ctl"))
        left.listen()
        vde.require(str(tmp_path))
    with pytest.raises(Fault, match=r"nothing listens at .*, which an ended switch has left"):
        vde.require(str(tmp_path))


def test_one_that_takes_nothing_any_more_does_not_hold_the_node_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stuck, socket.socket(socket.AF_UNIX) as first:
        stuck.bind(str(tmp_path / "ctl"))
        stuck.listen(0)
        first.connect(str(tmp_path / "ctl"))
        with pytest.raises(Fault, match="Resource temporarily unavailable"):
            vde.require(str(tmp_path))


def test_a_node_that_is_not_let_in_is_told_the_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    class Refusing(socket.socket):
        connect = refused

    monkeypatch.setattr(socket, "socket", Refusing)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(vde, "_own_group", lambda: "aetherscale")
    with pytest.raises(Fault, match=r"may not write to /run/lab\.ctl/ctl") as fault:
        vde.require("/run/lab.ctl")
    assert fault.value.remedy == "vde_switch -sock /run/lab.ctl -mode 660 -group aetherscale -daemon"


@pytest.mark.parametrize("path", ["/usr/bin/vde_switch", None])
def test_doctor_says_whether_there_can_be_a_switch_and_that_few_need_one(
    path: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: path if name == "vde_switch" else None)
    (found,) = [each for each in needs.findings(Settings(tmp_path, "host1")) if each.check == "vde"]
    assert found.status == "ok"
    assert ("apt-get install --no-install-recommends vde2" in found.found) == (path is None)
