"""`host setup --networks`, on made-up files of a kernel: which settings, in which order, and that once is enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from aetherscale.actors.network.routing import IPV4, IPV6, accept_ra
from aetherscale.kernel.errors import Refused
from aetherscale.setup import hostnetworks, hostpackages, hostsetup
from aetherscale.setup.hostpackages import packages
from aetherscale.setup.hostwork import steps

DEFAULT_ROUTE = f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} 00000400 00000002 00000000 00450003 {{}}\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A host that forwards nothing, and has its default route from router advertisements on two devices."""
    proc = tmp_path / "proc"
    devices = ("eth0", "wan0.7", "lan0")
    for path in (IPV4, IPV6):
        put(proc, path, "0")
    for device in devices:
        put(proc, accept_ra(device), "1")
    routes = proc / "thread-self/net/ipv6_route"
    routes.parent.mkdir(parents=True)
    routes.write_text(DEFAULT_ROUTE.format("eth0") + DEFAULT_ROUTE.format("wan0.7"))
    return proc


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "etc/sysctl.d/60-aetherscale.conf"


def put(proc: Path, path: str, value: str) -> None:
    place = proc / "sys" / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"{value}\n")


def now(proc: Path) -> dict[str, str]:
    return {str(each.relative_to(proc / "sys")): each.read_text().strip() for each in (proc / "sys").rglob("*/*/*")
            if each.is_file()}  # fmt: skip


def done(file: Path, proc: Path, *, dry_run: bool = False) -> list[tuple[str, str]]:
    return [(step.status, step.what) for step in steps(hostnetworks.parts(file, proc), dry_run=dry_run)]


def test_devices_are_told_to_hear_before_the_host_forwards(proc: Path, file: Path) -> None:
    assert done(file, proc) == [
        ("done", f"forwarding at each boot: {file}"),
        ("done", "net.ipv6.conf.eth0.accept_ra = 2"),
        ("done", "net/ipv6/conf/wan0.7/accept_ra = 2"),
        ("done", "net.ipv4.ip_forward = 1"),
        ("done", "net.ipv6.conf.all.forwarding = 1"),
    ]
    assert now(proc) == {accept_ra("eth0"): "2", accept_ra("wan0.7"): "2", accept_ra("lan0"): "1", IPV4: "1", IPV6: "1"}
    settings = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert settings == [
        "net/ipv6/conf/eth0/accept_ra = 2",
        "net/ipv6/conf/wan0.7/accept_ra = 2",
        "net/ipv4/ip_forward = 1",
        "net/ipv6/conf/all/forwarding = 1",
    ]
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_second_time_nothing_is_to_be_done(proc: Path, file: Path) -> None:
    first = done(file, proc)
    content = file.read_bytes()
    assert done(file, proc) == [("already", what) for _, what in first]
    assert file.read_bytes() == content


def test_what_somebody_changed_is_set_again(proc: Path, file: Path) -> None:
    done(file, proc)
    put(proc, IPV4, "0")
    put(proc, accept_ra("eth0"), "0")
    assert [what for status, what in done(file, proc) if status == "done"] == [
        "net.ipv6.conf.eth0.accept_ra = 2",
        "net.ipv4.ip_forward = 1",
    ]


def test_a_device_that_came_later_is_added_and_one_that_went_is_dropped(proc: Path, file: Path) -> None:
    done(file, proc)
    (proc / "sys" / accept_ra("eth0")).unlink()
    routes = proc / "thread-self/net/ipv6_route"
    routes.write_text(DEFAULT_ROUTE.format("lan0"))
    done(file, proc)
    assert [line for line in file.read_text().splitlines() if "accept_ra =" in line] == [
        "net/ipv6/conf/lan0/accept_ra = 2",
        "net/ipv6/conf/wan0.7/accept_ra = 2",
    ]


def test_a_dry_run_says_the_same_and_does_nothing(proc: Path, file: Path) -> None:
    before = now(proc)
    said = done(file, proc, dry_run=True)
    assert now(proc) == before
    assert not file.exists()
    assert {status for status, _ in said} == {"to do"}
    assert [what for _, what in done(file, proc)] == [what for _, what in said]


def test_a_host_without_ipv6_forwards_ipv4(proc: Path, file: Path) -> None:
    (proc / "sys" / IPV6).unlink()
    assert [what for _, what in done(file, proc)][1:] == ["net.ipv4.ip_forward = 1"]
    assert "ipv6/" not in file.read_text()


def test_a_setting_that_cannot_be_written_is_named(proc: Path, file: Path) -> None:
    (proc / "sys" / IPV4).unlink()
    parts = list(hostnetworks.parts(file, proc))
    assert not any("ip_forward" in part.what for part in parts), "there is none"
    put(proc, IPV4, "0")
    parts = list(hostnetworks.parts(file, proc))
    (proc / "sys" / IPV4).unlink()
    (proc / "sys" / IPV4).mkdir()
    with pytest.raises(Refused, match=r"this could not be done: net\.ipv4\.ip_forward = 1: .*ip_forward"):
        list(steps(parts, dry_run=False))


def test_packages_are_those_of_missing_programs() -> None:
    part = packages({"no-such-program": "its-package", "another-one": "its-package", "sh": "dash"})
    assert not part.is_so()
    assert part.what.startswith("Debian packages: apt-get install --yes --no-install-recommends its-package")
    assert part.what.count("its-package") == 1
    assert "dash" not in part.what


@pytest.mark.parametrize("networks", [True, False])
def test_only_who_asks_for_networks_gets_forwarding_and_packages(
    networks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hostpackages, "which", lambda program: asked.append(program))
    parts = hostsetup._parts("/opt/x/bin/python", networks=networks)
    assert any(part.what.startswith("forwarding at each boot: /etc/sysctl.d/") for part in parts) is networks
    assert ({"nft", "dnsmasq"} <= set(asked)) is networks
    assert "qemu-system-x86_64" in asked


def test_removal_takes_the_file_and_says_what_is_left(proc: Path, file: Path) -> None:
    done(file, proc)
    (step,) = steps([hostnetworks.removal(file)], dry_run=False)
    assert (step.status, file.exists()) == ("done", False)
    assert step.what == (
        f"{file} is gone; until its next boot the host forwards, and hears router advertisements, as it does now"
    )
    assert now(proc)[IPV6] == "1"
    (step,) = steps([hostnetworks.removal(file)], dry_run=False)
    assert (step.status, step.what) == ("already", f"{file} is gone")
