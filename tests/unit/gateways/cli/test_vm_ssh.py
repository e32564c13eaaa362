"""Where a guest is reached by SSH, what `ssh` is told, and what is in the way."""

from __future__ import annotations

import shlex
import socket
from contextlib import closing, nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from aetherscale.gateways.cli import vm_ssh
from aetherscale.gateways.cli.failures import Failure
from aetherscale.gateways.cli.output import Progress
from aetherscale.gateways.cli.values import user_name
from aetherscale.gateways.cli.vm_ssh import (
    _ANY,
    Place,
    _answers,
    _environment,
    _host_keys,
    _options,
    _places,
    _proxy,
    _reached,
)

VM = "0123456789abcdef"


def vm(*, publish: tuple[Any, ...] = (), ports: tuple[Any, ...] = (), **more: Any) -> dict[str, Any]:
    return {"id": VM, "name": "web", "publish": list(publish), "ports": list(ports), **more}


def published(address: str, host_port: int, guest_port: int = 22, protocol: str = "tcp") -> dict[str, Any]:
    return {"address": address, "host-port": host_port, "guest-port": guest_port, "protocol": protocol}


def port(*addresses: str, network: str = "lab") -> dict[str, Any]:
    found = [{"ip": address, "from": "lease"} for address in addresses]
    return {"addresses": found, "network-id": network, "tap": f"aep-{network}"}


class Answering:
    """A client of a node whose guest's agent says this."""

    def __init__(self, stdout: str, exit_code: int = 0, stderr: str = "") -> None:
        self._told = {"stdout": stdout, "stderr": stderr, "exit-code": exit_code}

    def result(self, component: str, task: str, options: Any, timeout_s: float) -> dict[str, Any]:
        assert (component, task, options["vm-id"]) == ("compute", "exec-vm", VM)
        return self._told


def keys(client: Answering) -> Any:
    class Told:
        def __init__(self) -> None:
            self.client = client

    return _host_keys(Told(), vm())  # type: ignore[arg-type]


def places(shown: dict[str, Any], *isolated: str) -> list[Place]:
    return list(_places(shown, frozenset(isolated)))


class TestPlaces:
    def test_a_published_port_leads_to_the_guest_and_only_that_of_ssh(self) -> None:
        among = (published("127.0.0.1", 8080, 80), published(_ANY, 2222), published("192.0.2.1", 2223))
        wrong = published("127.0.0.1", 2224, protocol="udp")
        assert places(vm(publish=(wrong, *among))) == [Place("127.0.0.1", 2222), Place("192.0.2.1", 2223)]

    def test_the_addresses_of_its_ports_come_first_and_each_once(self) -> None:
        leased = {"aep-lab": ["192.0.2.9", "fd00::2"], "aep-gone": ["192.0.2.8"]}
        shown = vm(ports=(port("10.64.0.2", "fd00::2"), port(network="public")), leased=leased)
        assert places(shown) == [Place(each, 22) for each in ("10.64.0.2", "fd00::2", "192.0.2.9")]

    def test_those_in_an_isolated_network_lead_nowhere_from_its_host(self) -> None:
        shown = vm(ports=(port("10.64.0.2"), port("10.64.1.2", network="far")), leased={"aep-lab": ["10.64.0.9"]})
        assert places(shown, "lab") == [Place("10.64.1.2", 22)]

    def test_one_without_any_has_none(self) -> None:
        assert places(vm()) == []

    def test_one_that_listens_answers_and_one_that_does_not_does_not(self) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            place = Place(*server.getsockname())
            assert _answers(place)
        assert not _answers(place)


class TestKeys:
    def test_they_are_those_that_the_agent_tells_without_their_comments(self) -> None:
        told = "ssh-ed25519 AAAA root@web\n\nssh-rsa BBBB\nrubbish\n"
        assert keys(Answering(told)) == ["ssh-ed25519 AAAA", "ssh-rsa BBBB"]

    @pytest.mark.parametrize(("stdout", "status"), [("", 0), ("ssh-ed25519 AAAA", 1), ("rubbish", 0)])
    def test_a_guest_without_any_is_refused_with_what_it_said(self, stdout: str, status: int) -> None:
        with pytest.raises(Failure, match="the guest of web has no host keys of sshd: cat: no such file"):
            keys(Answering(stdout, status, "cat: no such file\n"))


class TestWhatSshIsTold:
    def test_it_knows_the_keys_of_this_guest_alone_and_asks_nothing(self) -> None:
        words = _options(VM, Path("/tmp/x/known_hosts"), Place("fd00::2", 22), "root", None)
        told = [value for option, value in pairwise(words) if option == "-o"]
        assert {"StrictHostKeyChecking=yes", f"HostKeyAlias={VM}", "UserKnownHostsFile=/tmp/x/known_hosts"} < set(told)
        assert "GlobalKnownHostsFile=/dev/null" in told
        assert words[-6:] == ["-p", "22", "-l", "root", "--", "fd00::2"]

    def test_a_private_key_that_is_named_is_used(self) -> None:
        words = _options(VM, Path("/x"), Place("10.64.0.2", 2222), "joe", "/home/joe/key")
        assert words[-8:] == ["-i", "/home/joe/key", "-p", "2222", "-l", "joe", "--", "10.64.0.2"]

    @pytest.mark.parametrize("name", ["", "-oProxyCommand=x", "Joe", "a b", "a" * 33, "1a", "a\n"])
    def test_what_is_no_name_of_a_user_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="the name of a user"):
            user_name(name)

    @pytest.mark.parametrize("name", ["root", "_x", "joe-2", "a" * 32])
    def test_a_name_is_taken(self, name: str) -> None:
        assert user_name(name) == name


class TestReached:
    def reached(self, monkeypatch: pytest.MonkeyPatch, found: list[Place], *, network_s: float = 0.0) -> Any:
        class Out:
            notes: ClassVar[list[str]] = []

            def progress(self, subject: str) -> Any:
                return nullcontext(Progress(subject))

            def note(self, text: str) -> None:
                self.notes.append(text)

        class Told:
            def __init__(self) -> None:
                self.client, self.out, self.values = Answering("ssh-ed25519 AAAA root@web\n"), Out(), {"timeout": 30}

        monkeypatch.setattr(vm_ssh, "NETWORK_S", network_s)
        told = Told()
        return _reached(told, vm(), found), told.out.notes  # type: ignore[arg-type]

    def test_a_guest_without_an_address_is_reached_by_its_agent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.reached(monkeypatch, [])[0] == (["ssh-ed25519 AAAA"], None)

    def test_an_address_that_does_not_answer_is_left_for_the_agent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            silent = Place("127.0.0.1", server.getsockname()[1])
        (keys, place), notes = self.reached(monkeypatch, [silent])
        assert (keys, place) == (["ssh-ed25519 AAAA"], None)
        assert "through the guest agent" in notes[-1]

    def test_an_address_that_answers_is_the_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            there = Place("127.0.0.1", server.getsockname()[1])
            assert self.reached(monkeypatch, [there], network_s=30)[0][1] == there

    def test_the_proxy_is_one_line_without_a_secret_or_a_percent_sign_of_its_own(self) -> None:
        words = shlex.split(_proxy(VM))
        assert words[1:8] == ["-m", "aetherscale", "vm", "exec", "-i", VM, "--"]
        assert "\n" not in _proxy(VM)
        assert _proxy(VM).replace("%%", "").count("%") == 0
        typed = SimpleNamespace(parsed=SimpleNamespace(texts={"nats": "nats://u:secret@host", "user": "root"}))
        environment = _environment(typed)  # type: ignore[arg-type]
        assert environment["AETHERSCALE_NATS"] == "nats://u:secret@host"
        assert "AETHERSCALE_USER" not in environment
