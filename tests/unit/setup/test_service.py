"""Whose node is meant, what the service's reader runs for others, and what `host setup` and `host remove` would do."""

from __future__ import annotations

import grp
import os
import pwd
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from aetherscale import service
from aetherscale.__main__ import program
from aetherscale.bus.endpoint import Endpoint, read_endpoint, write_endpoint
from aetherscale.bus.refusals import hint
from aetherscale.gateways.cli import place, reader
from aetherscale.gateways.cli.failures import Failure
from aetherscale.gateways.cli.program import Ready, Step
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.settings import Settings, load_settings
from aetherscale.setup import hostremoval, hostsetup, hostwork
from aetherscale.setup.hostwork import Part, steps

NOBODY = pwd.getpwnam("nobody").pw_uid


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that has the service, whose user and group are those of this process."""
    monkeypatch.setattr(service, "UNIT_FILE", tmp_path / "aetherscale.service")
    monkeypatch.setattr(service, "STATE_DIR", tmp_path / "state")
    monkeypatch.setattr(service, "RUN_DIR", tmp_path / "run")
    monkeypatch.setattr(service, "READER", tmp_path / "reader.sock")
    monkeypatch.setattr(service, "USER", pwd.getpwuid(os.geteuid()).pw_name)
    monkeypatch.setattr(service, "GROUP", grp.getgrgid(os.getegid()).gr_name)
    for made in (service.STATE_DIR, service.RUN_DIR):
        made.mkdir()
    service.UNIT_FILE.touch()
    return tmp_path


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"nats://127.0.0.1:{server.getsockname()[1]}"


def settings_of(home: Path, **environ: str) -> Settings:
    """Of a user other than root, to whom the environment says this."""
    return load_settings({}, {"HOME": str(home), "XDG_STATE_HOME": str(home), **environ})


class TestWhichNodeIsMeant:
    @pytest.fixture(autouse=True)
    def _as_a_user(self, monkeypatch: pytest.MonkeyPatch, host: Path) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)

    def test_nobody_says_which_and_there_is_a_service(self, host: Path) -> None:
        settings = settings_of(host)
        assert place.is_service(settings)
        assert place.told_in(settings) == service.RUN_DIR
        assert place.start(settings) == "systemctl start aetherscale; journalctl -u aetherscale"

    def test_there_is_no_service(self, host: Path) -> None:
        service.UNIT_FILE.unlink()
        settings = settings_of(host)
        assert not place.is_service(settings)
        assert place.told_in(settings) == settings.state_dir
        assert place.start(settings) == f"aetherscale serve --state-dir {host}/aetherscale"

    def test_a_state_directory_or_a_server_that_is_named_is_meant(self, host: Path) -> None:
        assert not place.is_service(settings_of(host, AETHERSCALE_STATE_DIR=str(host / "other")))
        assert not place.is_service(settings_of(host, AETHERSCALE_NATS="nats://10.0.0.1"))
        assert place.is_service(settings_of(host, AETHERSCALE_STATE_DIR=str(service.STATE_DIR)))

    def test_a_node_of_ones_own_goes_first_while_it_runs(self, host: Path, listening: str) -> None:
        settings = settings_of(host)
        settings.state_dir.mkdir()
        assert place.is_service(settings), "it never ran"
        write_endpoint(settings.state_dir, Endpoint("nats://127.0.0.1:1"))
        assert place.is_service(settings), "it has ended"
        write_endpoint(settings.state_dir, Endpoint(listening))
        assert not place.is_service(settings)

    def test_who_is_no_member_and_had_a_node_of_ones_own_means_that(
        self, host: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "getegid", lambda: NOBODY)
        monkeypatch.setattr(os, "getgroups", list)
        settings = settings_of(host)
        assert place.is_service(settings)
        settings.state_dir.mkdir()
        assert not place.is_service(settings)

    def test_logs_are_read_and_the_host_is_seen_by_the_services_user(
        self, host: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service_uid = service.uid()
        assert service_uid is not None
        by = [(NOBODY, True, True), (0, service_uid == 0, True), (service_uid, False, False)]
        settings = settings_of(host)
        for uid, reads_log, sees_host in by[: 1 if service_uid == 0 else 3]:
            monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
            assert place.reads_by_service(settings, as_the_node=False) is reads_log
            assert place.reads_by_service(settings, as_the_node=True) is sees_host


def test_who_is_no_member_is_told_how_to_become_one(monkeypatch: pytest.MonkeyPatch, host: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    why, hint = service.membership()
    assert why.endswith("and nobody is not one")
    assert hint.startswith(f"as root: usermod -aG {service.GROUP} nobody; then log in again.")
    whose = grp.struct_group((service.GROUP, "x", os.getegid(), ["nobody"]))
    monkeypatch.setattr(grp, "getgrnam", lambda name: whose)
    why, hint = service.membership()
    assert "nobody is one, but was not yet when this session began" in why
    assert hint == f"log in again, or: newgrp {service.GROUP}"


@pytest.mark.parametrize("is_there", [True, False])
def test_nobody_else_serves_on_the_services_state(host: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    def ready(told: Ready) -> None:
        raise AssertionError("it is the service's")

    if not is_there:  # taken out, and its state left
        service.UNIT_FILE.unlink()
    monkeypatch.setattr(service, "USER", "nobody")
    if not is_there:
        os.chown(service.STATE_DIR, NOBODY, -1)
    with pytest.raises(Refused) as refused:
        program().serve(Settings(service.STATE_DIR, "host1", simulated=True), ready)
    assert "is for the node of this host's service, which runs as nobody" in refused.value.message
    assert hint(refused.value.remedy).startswith(
        "systemctl start aetherscale;" if is_there else "aetherscale host setup;"
    )
    assert list(service.STATE_DIR.iterdir()) == []


def test_the_group_is_told_too_and_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_endpoint(tmp_path, Endpoint("nats://127.0.0.1:1", "u", "p"), tmp_path / "run")
    assert read_endpoint(tmp_path / "run") == read_endpoint(tmp_path)
    assert (tmp_path / "nats.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "run/nats.json").stat().st_mode & 0o777 == 0o640


class TestTheReader:
    @pytest.mark.parametrize(
        "words",
        ["replay", "replay vm --at 3 --json", "why vm web", "diff 1 2", "events list", "events tail", "doctor",
         "log verify", "log info", f"log info --state-dir {service.STATE_DIR}"],
    )  # fmt: skip
    def test_what_only_reads_is_run(self, words: str) -> None:
        assert reader.refusal(words.split()) == ""

    @pytest.mark.parametrize(
        "words",
        ["", "serve", "vm list", "vm delete web", "log import x", "log archive", "log export", "log export x",
         "host remove --purge", "demo", "replay --state-dir /root", "replay --config /etc/shadow", "nope",
         "doctor --nats nats://10.0.0.1", "--state-dir=/x replay", "completion words -- a"],
    )  # fmt: skip
    def test_everything_else_is_refused(self, words: str) -> None:
        assert reader.refusal(words.split()) != ""

    def test_no_nul_reaches_a_program(self) -> None:
        assert "NUL" in reader.refusal(["why", "vm", "a\0b"])

    def test_more_words_than_the_bound_are_not_sent(self, host: Path) -> None:
        with pytest.raises(Failure, match="expected at most"):
            reader.ask(["why", "vm", "x" * reader.LARGEST_BYTES], {})

    def test_a_reader_that_does_not_answer_is_named(self, host: Path) -> None:
        with pytest.raises(Failure) as failure:
            reader.ask(["replay"], {})
        assert failure.value.hint == "systemctl start aetherscale-reader.socket"
        assert failure.value.status == 4

    @pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"words": [1], "environment": {}}', b"\xff"])
    def test_what_is_not_understood_is_not_answered(self, body: bytes, capfd: pytest.CaptureFixture[str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            socket.send_fds(ours, [body or b" "], [1, 2])
            reader.answer(theirs)
        assert "not understood" in capfd.readouterr().err

    def test_without_descriptors_nothing_is_run(self, capfd: pytest.CaptureFixture[str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            ours.send(msgspec.json.encode(reader.Asked(["replay"], {})))
            reader.answer(theirs)
        assert "expected stdout and stderr" in capfd.readouterr().err


class TestParts:
    def test_what_is_so_is_left_and_a_dry_run_does_nothing(self) -> None:
        done: list[str] = []
        parts = [
            Part("a", lambda: True, lambda: done.append("a")),
            Part("b", lambda: "b" in done, lambda: done.append("b")),
        ]
        assert [step.status for step in steps(parts, dry_run=True)] == ["already", "to do"]
        assert done == []
        assert [step.status for step in steps(parts, dry_run=False)] == ["already", "done"]
        assert [step.status for step in steps(parts, dry_run=False)] == ["already", "already"]
        assert done == ["b"]

    def test_a_part_that_cannot_be_is_told_and_no_traceback(self, tmp_path: Path) -> None:
        part = Part("the file", lambda: False, (tmp_path / "none" / "file").touch)
        with pytest.raises(Refused) as refused:
            list(steps([part], dry_run=False))
        assert refused.value.message == (
            f"host: this could not be done: the file: {tmp_path}/none/file: No such file or directory"
        )

    @pytest.mark.parametrize(
        ("what", "work"),
        [
            ("setup", lambda: hostsetup.set_up(dry_run=False, networks=True)),
            ("remove", lambda: hostremoval.take_out(dry_run=False, purge=True, kill=True)),
        ],
    )
    def test_who_is_not_root_is_told_so(
        self, what: str, work: Callable[[], Iterator[Step]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(hostwork, "SYSTEMD", tmp_path)
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
        with pytest.raises(Refused) as refused:
            list(work())
        assert (refused.value.reason, refused.value.message) == (
            Reason.FORBIDDEN,
            f"host {what}: only root can do this",
        )

    def test_the_reader_sees_the_host_as_the_node_does(self) -> None:
        node, reading = hostsetup.unit("/x/python", 7), hostsetup.reader_unit("/x/python", 7)
        for kept in ("User=aetherscale", "ProtectSystem=strict", "DeviceAllow=/dev/kvm rw", "SystemCallFilter="):
            assert kept in node
            assert kept in reading
        assert "ExecStart=/x/python -m aetherscale.gateways.cli.reader\n" in reading
        assert "serve" not in reading
        assert "Type=" not in reading
        assert "RuntimeDirectory" not in reading, "its end would be the node's loss"

    def test_a_process_that_does_not_end_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hostremoval, "DEATH_S", 0.01)
        pidfd = os.pidfd_open(os.getpid())
        with pytest.raises(Refused, match="does not end within"):
            hostremoval._require_end(pidfd, os.getpid())
        os.close(pidfd)

    def test_a_settings_file_that_moves_the_state_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = tmp_path / "aetherscale.toml"
        monkeypatch.setattr(hostsetup, "CONFIG", config)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        hostsetup._require_settings()
        config.write_text(hostsetup.SETTINGS)
        hostsetup._require_settings()
        config.write_text('state-dir = "/srv/vms"\n')
        with pytest.raises(Refused, match="has state-dir = '/srv/vms', and the service's is /var/lib/aetherscale"):
            hostsetup._require_settings()
        config.write_text("nodes = 3\n")
        with pytest.raises(Refused, match="no such setting: 'nodes'"):
            hostsetup._require_settings()


def test_a_build_is_of_code_unit_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CONFIG", tmp_path / "aetherscale.toml")
    monkeypatch.setattr(service, "UNIT_FILE", tmp_path / "aetherscale.service")
    builds = [service.build(), service.build()]
    for path in (service.CONFIG, service.UNIT_FILE):
        path.write_text("x")
        builds.append(service.build())
    monkeypatch.setattr("aetherscale.__version__", "9.9")
    builds.append(service.build())
    assert builds[0] == builds[1]
    assert len(set(builds)) == 4
