"""Inside of a booted systemd: what the service may do with networks, and `host setup --networks`."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from aetherscale import service
from aetherscale.actors.network.netlink.taps import DEVICE
from aetherscale.setup.hostnetworks import SYSCTL_FILE
from aetherscale.setup.hostsetup import OF_THE_NODE
from tests.systemd.inside import lines
from tests.systemd.trying import KINDS, OTHERS
from tests.systemd.units import told

SYS: Final = Path("/proc/sys/net")
FORWARDING: Final = (SYS / "ipv4/ip_forward", SYS / "ipv6/conf/all/forwarding")
TUN: Final = os.makedev(10, 200)
TRYING: Final = "aetherscale-trying.service"


@pytest.fixture(scope="module")
def tun() -> None:
    """/dev/net/tun as udev makes it. This machine's, of which a container has but a mount, stays as it is."""
    device = Path(DEVICE)
    if not os.path.ismount(device):
        return
    subprocess.run(["umount", device], check=True)
    device.unlink(missing_ok=True)
    os.mknod(device, stat.S_IFCHR | 0o666, TUN)
    device.chmod(0o666)


@pytest.fixture
def still() -> Iterator[None]:
    """The host does not forward, before and after."""
    for setting in FORWARDING:
        setting.write_text("0")
    yield
    for setting in FORWARDING:
        setting.write_text("0")


def in_the_sandbox(program: tuple[str, ...], what: str = "all") -> dict[str, Any]:
    """What `trying.py` finds where it runs as the node does: the service's unit, but for what it starts and how."""
    unit = service.UNIT_FILE.read_text().partition("[Service]\n")[2].partition("[Install]")[0]
    kept = [line for line in unit.splitlines() if line.partition("=")[0] not in OF_THE_NODE]
    trying = Path("/run/systemd/system", TRYING)
    answer = service.STATE_DIR / "trying.json"
    start = f"ExecStart={program[0]} -m tests.systemd.trying {what}\nStandardOutput=truncate:{answer}\n"
    here = "WorkingDirectory=/srv/aetherscale\nEnvironment=PYTHONDONTWRITEBYTECODE=1\n"
    trying.write_text("\n".join(["[Service]", "Type=oneshot", *kept, start + here]))
    try:
        lines("systemctl", "daemon-reload")
        lines("systemctl", "start", TRYING)
        found = json.loads(answer.read_text())
    finally:
        trying.unlink()
        answer.unlink(missing_ok=True)
        told("daemon-reload")
    assert isinstance(found, dict)
    return found


def test_the_service_makes_networks_and_may_set_nothing_else(program: tuple[str, ...], tun: None) -> None:
    lines(*program, "host", "setup")
    found = in_the_sandbox(program)
    devices = found["devices"]
    assert devices["made"] == devices["wanted"]
    assert devices["left"] == []
    assert devices["resolver"]
    assert devices["accept_ra"] == "0"
    assert "table bridge aetherscale-try" in found["table"]
    assert found["forwarding"] == ""
    assert set(found["others"]) == set(OTHERS)
    assert set(found["others"].values()) == {"Read-only file system"}
    assert found["net"] == ""
    assert set(found["kinds"]) == set(KINDS)
    for kind, why in found["kinds"].items():
        assert "Operation not permitted" in why, kind
    (networks,) = [each for each in found["findings"] if each[1] == "networks"]
    assert networks[0] == "ok", found["findings"]


@pytest.mark.parametrize(
    ("line", "instead", "check"),
    [
        ("ReadWritePaths=/proc/sys/net\n", "", "settings of devices"),
        ("RestrictNamespaces=user net mnt\n", "RestrictNamespaces=user net\n", "namespaces"),
        ("AmbientCapabilities=CAP_NET_ADMIN\n", "", "networks"),
        ("DeviceAllow=/dev/net/tun rw\n", "InaccessiblePaths=/dev/net/tun\n", "tun"),
    ],
)
def test_what_a_unit_does_not_give_is_told(
    program: tuple[str, ...], tun: None, line: str, instead: str, check: str
) -> None:
    lines(*program, "host", "setup")
    installed = service.UNIT_FILE.read_text()
    assert line in installed
    service.UNIT_FILE.write_text(installed.replace(line, instead))
    told("daemon-reload")
    try:
        found = in_the_sandbox(program, "findings")
    finally:
        service.UNIT_FILE.write_text(installed)
        told("daemon-reload")
    missing = [each for each in found["findings"] if each[0] != "ok" and each[2].startswith("no virtual networks: ")]
    assert [each[1] for each in missing] == [check], found


def test_a_host_is_made_one_that_forwards_and_that_is_taken_back(program: tuple[str, ...], still: None) -> None:
    lines(*program, "host", "setup")
    assert not SYSCTL_FILE.exists()
    wanted = lines(*program, "host", "setup", "--networks", "--dry-run")
    assert not SYSCTL_FILE.exists()
    assert [setting.read_text() for setting in FORWARDING] == ["0\n", "0\n"]

    done = lines(*program, "host", "setup", "--networks")
    assert [line[9:] for line in done] == [line[9:] for line in wanted]
    assert f"done     forwarding at each boot: {SYSCTL_FILE}" in done
    assert "done     net.ipv4.ip_forward = 1" in done
    assert [setting.read_text() for setting in FORWARDING] == ["1\n", "1\n"]
    assert {line[:7].strip() for line in lines(*program, "host", "setup", "--networks")} == {"already"}
    assert {line[:7].strip() for line in lines(*program, "host", "setup")} == {"already"}, "and it stays without"
    assert SYSCTL_FILE.exists()

    for setting in FORWARDING:
        setting.write_text("0")
    told("restart", "systemd-sysctl.service")
    assert [setting.read_text() for setting in FORWARDING] == ["1\n", "1\n"], "as at a boot"

    removed = lines(*program, "host", "remove")
    assert any(f"{SYSCTL_FILE} is gone; until its next boot the host forwards" in line for line in removed)
    assert not SYSCTL_FILE.exists()
    assert [setting.read_text() for setting in FORWARDING] == ["1\n", "1\n"]
