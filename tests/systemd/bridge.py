"""A host that is booted, in a container: a bridge on trial, a power cut, a confirmation, a reboot. By `just systemd`.

The namespace of each boot is new, as the devices of a host are. What outlives a boot is `/etc/systemd/system` and
`/etc/aetherscale`. A unit called `networking.service` configures eth0, as ifupdown does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.guest_namespaces import sh
from tests.support.network_namespaces import network_namespace
from tests.support.node import ROOT
from tests.support.uplink_world import (
    FAR,
    HOST4,
    HOST6,
    MAC,
    ROUTER4,
    ROUTER6,
    World,
    dumps,
    eventually_within,
    settled,
    world,
)
from tests.systemd.__main__ import booted, entering

pytestmark = pytest.mark.timeout(400)

NETWORKING: Final = f"""\
[Unit]
DefaultDependencies=no
After=local-fs.target network-pre.target
Before=network.target shutdown.target
Wants=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip link set eth0 up
ExecStart=ip address add {HOST4}/24 dev eth0
ExecStart=ip -6 address add {HOST6}/64 dev eth0 nodad
ExecStart=ip route add default via {ROUTER4} dev eth0 metric 100
ExecStart=ip -6 route add default via {ROUTER6} dev eth0 metric 200
[Install]
WantedBy=multi-user.target
"""
WAITING: Final = """\
[Unit]
DefaultDependencies=no
Wants=network-online.target
After=network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -c 'ip route get {far} > /run/at-network-online'
[Install]
WantedBy=multi-user.target
"""
PERIOD_S: Final = 60.0
PATIENCE_S: Final = 30.0
PROGRAM: Final = (sys.executable, "-m", "aetherscale")


class Booted:
    """A host that runs."""

    def __init__(self, leader: int, world: World) -> None:
        self.leader, self.world = leader, world

    def done(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in there, as root."""
        return subprocess.run([*entering(self.leader), *command], capture_output=True, text=True, check=False)

    def good(self, *command: str) -> str:
        done = self.done(*command)
        assert done.returncode == 0, (
            done.stdout + done.stderr + self.done("journalctl", "--no-pager", "-n", "40").stdout
        )
        return done.stdout

    def cut_power(self) -> None:
        """All of it is gone at once."""
        os.kill(self.leader, signal.SIGKILL)


class Machine:
    """What outlives a boot."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.units, self.etc = directory / "units", directory / "etc"
        self.etc.mkdir()
        wants = self.units / "multi-user.target.wants"
        wants.mkdir(parents=True)
        for name, text in (("networking.service", NETWORKING), ("waiting.service", WAITING.format(far=FAR))):
            (self.units / name).write_text(text)
            (wants / name).symlink_to(f"/etc/systemd/system/{name}")
        for name in ("systemd-networkd.service", "systemd-networkd-wait-online.service"):
            (self.units / name).symlink_to("/dev/null")
        self._boots = 0

    @contextmanager
    def boot(self) -> Iterator[Booted]:
        """A boot, with a new device, until it is switched off."""
        self._boots += 1
        directory = self._directory / str(self._boots)
        directory.mkdir()
        python = Path(sys.base_prefix).resolve()
        places = [f"--bind={ROOT}"] if python.is_relative_to("/usr") else [f"--bind={ROOT}", f"--bind-ro={python}"]
        options = (
            *("--directory=/", "--volatile=yes", "--overlay=/usr/local::/usr/local", *places),
            f"--bind={self.units}:/etc/systemd/system",
            f"--bind={self.etc}:/etc/aetherscale",
            f"--network-namespace-path=/proc/{os.getpid()}/ns/net",
        )
        with network_namespace(), world(directory, is_configured=False) as made, booted(*options) as leader:
            settled()
            yield Booted(leader, made)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def files(machine: Machine) -> list[str]:
    """What of ours outlives a boot, by its names. systemd itself enables units at the first one."""
    found = (*machine.units.rglob("aetherscale*"), *machine.etc.rglob("*"))
    return sorted(str(path.relative_to(machine.units.parent)) for path in found)


def test_a_bridge_that_is_not_confirmed_is_taken_back_though_the_session_is_dead(machine: Machine) -> None:
    with machine.boot() as host:
        before = dumps()
        # All that the session started dies with it.
        session = (
            "systemd-run",
            "--quiet",
            "--wait",
            "--collect",
            "--unit=session",
            "--property=KillMode=control-group",
        )
        host.good(*session, *PROGRAM, "host", "setup", "bridge", "--device", "eth0")
        assert f"br0: address = {MAC}" in dumps()
        host.world.expect_reachable()
        assert files(machine) == []
        (guard,) = host.good(
            "systemctl", "list-units", "--plain", "--no-legend", "aetherscale-bridge-guard-*"
        ).splitlines()
        pid = host.good("systemctl", "show", "--value", "-p", "MainPID", guard.split()[0]).strip()
        host.good("kill", "-KILL", pid)
        eventually_within(PERIOD_S + PATIENCE_S, lambda: "br0" not in sh("ip", "-br", "link"))
        eventually_within(PATIENCE_S, lambda: dumps() == before)
        host.world.expect_reachable()
        assert files(machine) == []
        refused = host.done(*PROGRAM, "host", "setup", "bridge", "--confirm")
        assert refused.returncode == 3
        assert "no bridge waits for it" in refused.stderr


def test_after_a_power_cut_without_confirmation_the_host_comes_up_as_it_was(machine: Machine) -> None:
    assert files(machine) == []
    with machine.boot() as host:
        before = dumps()
        host.good(*PROGRAM, "host", "setup", "bridge", "--device", "eth0")
        assert dumps() != before
        host.cut_power()
    assert files(machine) == []
    with machine.boot() as host:
        assert dumps() == before
        host.world.expect_reachable()


def test_a_confirmed_bridge_is_there_at_each_boot_until_it_is_undone(machine: Machine) -> None:
    assert files(machine) == []
    with machine.boot() as host:
        before = dumps()
        host.good(*PROGRAM, "host", "setup", "bridge", "--device", "eth0")
        host.good(*PROGRAM, "host", "setup", "bridge", "--confirm")
        confirmed = dumps()
        host.cut_power()
    with machine.boot() as host:
        assert dumps() == confirmed
        host.world.expect_reachable()
        assert "dev br0" in host.good("cat", "/run/at-network-online")
        assert host.good("systemctl", "is-active", "aetherscale-bridge.service").strip() == "active"
        host.good("systemctl", "restart", "aetherscale-bridge.service")
        assert dumps() == confirmed
        refused = host.done(*PROGRAM, "host", "remove", "--purge")
        assert "br0 has the place of eth0, and would be gone at the next boot" in refused.stderr
        assert host.good(*PROGRAM, "host", "setup", "bridge", "--device", "eth0").startswith("already")
        host.good(*PROGRAM, "host", "setup", "bridge", "--undo")
        assert dumps() == before
        assert files(machine) == []
    with machine.boot() as host:
        assert dumps() == before
        host.world.expect_reachable()
