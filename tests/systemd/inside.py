"""Inside of a booted systemd: scopes with their limits, and a node that is a service. Run by `just systemd`."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import signal
import subprocess
from asyncio.subprocess import DEVNULL
from pathlib import Path
from typing import Any, Final

import pytest

from aetherscale import service
from aetherscale.actors.compute.qemu import supervision
from aetherscale.processes import users
from tests.contract.test_supervisor import Spawned
from tests.support.eventually import asked_until
from tests.support.node import guests
from tests.support.raw_images import bare_image
from tests.systemd.units import no_units, told, units

EXPOSURE: Final = 30
"""Tenths: what `systemd-analyze security` may find at most."""


async def one_unit() -> bool:
    return len(units()) == 1


async def test_the_limits_are_those_of_the_scope(tmp_path: Path) -> None:
    supervisor = await supervision.choose("systemd")
    spawned = Spawned(supervisor, tmp_path, "sleep", "600")
    await asked_until(one_unit)
    (unit,) = units()
    shown = told("show", unit, "-p", "MemoryMax,TasksMax,CPUQuotaPerSecUSec,IOWeight,CPUWeight,Slice")
    assert set(shown.split()) == {
        f"MemoryMax={(64 + supervision.QEMU_MIB) * 1024**2}",
        f"TasksMax={supervision.TASKS + 2}",
        "CPUQuotaPerSecUSec=3s",
        f"IOWeight={supervision.SHARE}",
        f"CPUWeight={supervision.SHARE}",
        f"Slice={supervision.SLICE}",
    }
    os.kill(spawned.pid, signal.SIGKILL)
    await spawned.ended()
    await asked_until(no_units)


# --- a node that is a service ----------------------------------------------------------------------------------------


def lines(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + journal()
    return done.stdout.splitlines()


def journal() -> str:
    return subprocess.run(["journalctl", "--no-pager", "-n", "60"], capture_output=True, text=True, check=True).stdout


def vms(*program: str) -> dict[str, dict[str, Any]]:
    return {vm["name"]: vm for vm in json.loads("\n".join(lines(*program, "vm", "list", "--json")))}


def cgroup_of(pid: int) -> str:
    return supervision.cgroup_of(Path(f"/proc/{pid}/cgroup").read_text())


async def serving(program: tuple[str, ...]) -> bool:
    asked = await asyncio.create_subprocess_exec(*program, "vm", "list", stdout=DEVNULL, stderr=DEVNULL)
    return await asked.wait() == 0


def test_a_state_directory_of_somebody_else_is_not_taken(program: tuple[str, ...]) -> None:
    service.STATE_DIR.mkdir()
    left = service.STATE_DIR / "events.db"
    left.touch()
    refused = subprocess.run([*program, "host", "setup"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "has files that are not aetherscale's: events.db" in refused.stderr
    left.unlink()


async def test_a_host_is_set_up_and_its_guests_outlive_the_service(program: tuple[str, ...], tmp_path: Path) -> None:
    wanted = lines(*program, "host", "setup", "--dry-run")
    assert {line.split()[0] for line in wanted} <= {"to", "already"}
    assert not service.UNIT_FILE.exists()
    done = lines(*program, "host", "setup")
    assert [line[9:] for line in done] == [line[9:] for line in wanted]
    assert {line[:7].strip() for line in lines(*program, "host", "setup")} == {"already"}

    node = int(told("show", "--value", "-p", "MainPID", service.UNIT))
    status = Path(f"/proc/{node}/status").read_text()
    user = pwd.getpwnam(service.USER)
    assert f"Uid:\t{user.pw_uid}\t" in status
    assert "CapEff:\t0000000000001000" in status, "CAP_NET_ADMIN and nothing else"

    image = bare_image(tmp_path)
    image.chmod(0o644)
    tmp_path.chmod(0o755)
    shared = Path("/srv/bare.img")
    shared.write_bytes(image.read_bytes())
    lines(*program, "image", "import", str(shared), "--name", "bare", "--ready", "none")
    lines(*program, "vm", "create", "web", "--image", "bare", "--memory", "64M")
    (guest,) = guests(service.STATE_DIR)
    guest_status = Path(f"/proc/{guest}/status").read_text()
    assert "CapEff:\t0000000000000000" in guest_status
    assert users.is_a_vms(int(guest_status.partition("\nUid:\t")[2].split()[0]))
    scope = cgroup_of(guest)
    assert f"/user@{user.pw_uid}.service/{supervision.SLICE}/aetherscale-vm-" in scope
    assert cgroup_of(node) == f"/{supervision.SLICE}/{service.UNIT}"

    os.kill(node, signal.SIGKILL)
    await asked_until(lambda: serving(program))
    assert vms(*program)["web"]["observed"] == "running"
    for how in ("restart", "stop"):
        told(how, service.UNIT)
        assert set(guests(service.STATE_DIR)) == {guest}, how
    told("start", service.UNIT)
    assert vms(*program)["web"]["restarts"] == 0
    types = [line.split() for line in lines(*program, "events", "list")]
    assert sum("VmAdopted" in words for words in types) == 3

    lines(*program, "vm", "delete", "web", "--kill")
    assert guests(service.STATE_DIR) == {}
    await asked_until(lambda: gone(Path("/sys/fs/cgroup/unified" + scope), Path("/sys/fs/cgroup" + scope)))

    lines(*program, "vm", "create", "db", "--image", "bare", "--memory", "64M")
    before = guests(service.STATE_DIR)
    lines(*program, "host", "remove")
    assert told("show", "--value", "-p", "LoadState", service.UNIT).strip() == "not-found"
    assert guests(service.STATE_DIR) == before
    lines(*program, "host", "setup")
    lines(*program, "vm", "delete", "db", "--kill")


async def test_a_guest_without_a_unit_outlives_the_service_too(program: tuple[str, ...]) -> None:
    lines(*program, "host", "setup")
    drop_in = Path("/run/systemd/system/aetherscale.service.d/detached.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nEnvironment=AETHERSCALE_SUPERVISOR=detached\n")
    try:
        told("daemon-reload")
        told("restart", service.UNIT)
        lines(*program, "vm", "create", "ci", "--image", "bare", "--memory", "64M")
        (guest,) = guests(service.STATE_DIR)
        assert cgroup_of(guest) == f"/{supervision.SLICE}/{service.UNIT}"
        told("restart", service.UNIT)
        assert set(guests(service.STATE_DIR)) == {guest}
        assert vms(*program)["ci"]["restarts"] == 0
        lines(*program, "vm", "delete", "ci", "--kill")
    finally:
        drop_in.unlink()
        told("daemon-reload")
        told("restart", service.UNIT)


async def gone(*places: Path) -> bool:
    return not any(place.exists() for place in places)


def test_the_service_is_as_closed_as_it_can_be(program: tuple[str, ...]) -> None:
    lines(*program, "host", "setup")
    assert lines("systemd-analyze", "verify", str(service.UNIT_FILE)) == []
    said = lines("systemd-analyze", "security", "--no-pager", f"--threshold={EXPOSURE}", service.UNIT)
    print(said[-1])


# --- a uid of its own for each VM ------------------------------------------------------------------------------------


def as_escaped(guest: int, *command: str) -> subprocess.CompletedProcess[str]:
    """What a program gets that a guest, having broken out of its QEMU, starts: with all that QEMU is."""
    uid = uid_of(guest)
    # nsenter leaves it no group, and with that uid the program that it becomes has no capability.
    within = ["nsenter", "--target", str(guest), "--user", "--setuid", str(uid), "--setgid", str(uid)]
    return subprocess.run([*within, "--", *command], capture_output=True, text=True, check=False)


def uid_of(pid: int) -> int:
    """The one uid that a process has in every respect."""
    (uid,) = set(Path(f"/proc/{pid}/status").read_text().partition("\nUid:\t")[2].partition("\n")[0].split())
    return int(uid)


def guest_of(vm: dict[str, Any]) -> int:
    (pid,) = (pid for pid, vm_id in guests(service.STATE_DIR).items() if vm_id == vm["id"])
    return pid


async def test_a_guest_that_breaks_out_of_its_qemu_is_nobody_on_the_host(program: tuple[str, ...]) -> None:
    lines(*program, "host", "setup")
    for name in ("one", "two"):
        lines(*program, "vm", "create", name, "--image", "bare", "--memory", "64M")
    made = vms(*program)
    one, two = (guest_of(made[name]) for name in ("one", "two"))
    node = int(told("show", "--value", "-p", "MainPID", service.UNIT))
    assert len({0, uid_of(node), uid_of(one), uid_of(two)}) == 4
    assert {vm["process-user"] for vm in made.values()} == {"own"}
    for guest in (one, two):
        status = Path(f"/proc/{guest}/status").read_text()
        assert "Groups:\t\n" in status.replace("Groups:\t \n", "Groups:\t\n")
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert f"{kind}:\t0000000000000000" in status

    state, other = service.STATE_DIR, made["two"]["id"]
    secrets = ("events.db", "nats.json", f"vms/{other}/disk.qcow2", f"vms/{other}/qmp.sock", ".")
    for secret in secrets:
        assert (state / secret).exists()
        refused = as_escaped(one, "test", "-r", str(state / secret))
        assert refused.returncode == 1, f"{secret}: {refused.stderr}"
    assert as_escaped(one, "test", "-r", "/etc").returncode == 0, "or nothing was tried"
    for pid in (two, node):
        assert as_escaped(one, "kill", "-0", str(pid)).returncode != 0
    assert as_escaped(one, "test", "-w", "/proc/sys/net/ipv4/ip_forward").returncode == 1
    assert as_escaped(one, "ip", "link", "show").returncode == 0, "or nothing was tried"
    assert "Operation not permitted" in as_escaped(one, "ip", "link", "add", "br9", "type", "bridge").stderr
    asked = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    refused = as_escaped(one, "/usr/bin/python3", "-c", asked, str(users.MAPPER))
    assert "PermissionError" in refused.stderr, "nobody but the node gets a uid there"

    os.kill(node, signal.SIGKILL)
    await asked_until(lambda: serving(program))
    assert {vm["restarts"] for vm in vms(*program).values()} == {0}
    assert {guest_of(vm) for vm in vms(*program).values()} == {one, two}
    lines(*program, "vm", "stop", "one", "--kill")
    assert set(guests(state)) == {two}
    lines(*program, "vm", "start", "one")
    assert uid_of(guest_of(vms(*program)["one"])) == users.derived_uid(made["one"]["id"])
    lines(*program, "vm", "delete", "one", "--kill")
    lines(*program, "vm", "delete", "two", "--kill")
    assert guests(state) == {}
    await asked_until(no_units)
    assert {name.name for name in (state / "vms").iterdir()} <= {".collected"}


def as_the_node(*command: str) -> subprocess.CompletedProcess[str]:
    bare = ["setpriv", f"--reuid={service.USER}", f"--regid={service.GROUP}", "--init-groups", "--inh-caps=-all"]
    return subprocess.run([*bare, "--bounding-set=-all", "--", *command], capture_output=True, text=True, check=False)


MAPPED: Final = (
    "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode());"
    "print(s.recv(100).decode())"
)


@pytest.mark.parametrize("asked", ["0\n", "1000\n", "1879048191\n", f"{0x7FFE0000}\n", "1879048192", "\n", "x\n"])
def test_the_mapper_gives_no_uid_but_a_vms(program: tuple[str, ...], asked: str) -> None:
    lines(*program, "host", "setup")
    python = ("unshare", "--user", "--keep-caps", "--", "/usr/bin/python3", "-c", MAPPED)
    assert "that is not the uid of a VM" in as_the_node(*python, str(users.MAPPER), asked).stdout
    assert "ok" in as_the_node(*python, str(users.MAPPER), "1879048192\n").stdout


def test_the_mapper_maps_nothing_into_the_namespace_of_the_host(program: tuple[str, ...]) -> None:
    lines(*program, "host", "setup")
    told_so = as_the_node("/usr/bin/python3", "-c", MAPPED, str(users.MAPPER), "1879048192\n")
    assert "the kernel refuses it" in told_so.stdout
    assert lines("systemd-analyze", "verify", "/etc/systemd/system/aetherscale-uids.socket") == []


def test_without_the_mapper_no_guest_starts_as_the_node(program: tuple[str, ...]) -> None:
    lines(*program, "host", "setup")
    told("stop", "aetherscale-uids.socket")
    users.MAPPER.unlink(missing_ok=True)
    refused = subprocess.run([*program, "vm", "create", "shut", "--image", "bare", "--memory", "64M"],
                             capture_output=True, text=True, check=False)  # fmt: skip
    assert refused.returncode == 1
    assert "QEMU would run as the node's own user, aetherscale" in refused.stderr
    assert "--allow-unisolated" in refused.stderr
    assert guests(service.STATE_DIR) == {}
    assert "done" in "".join(lines(*program, "host", "setup"))
    lines(*program, "vm", "create", "open", "--image", "bare", "--memory", "64M")
    lines(*program, "vm", "delete", "open", "--kill")
