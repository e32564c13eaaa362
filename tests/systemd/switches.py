"""Inside of a booted systemd: VMs of the service on VDE switches of the host."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale import service
from tests.support import vde_switches
from tests.support.node import guests
from tests.support.raw_images import bare_image
from tests.support.vde_switches import until_in_use, vde_switch
from tests.systemd.inside import lines, vms

pytestmark = pytest.mark.skipif(bool(vde_switches.missing()), reason=vde_switches.missing())

LAB = Path("/run/lab.ctl")


def create(program: tuple[str, ...], name: str, lab: Path) -> subprocess.CompletedProcess[str]:
    words = ("vm", "create", name, "--image", "on-switches", "--memory", "64M", "--network", f"vde:{lab}")
    return subprocess.run([*program, *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def program(program: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """The command line of a host whose service has an image."""
    lines(*program, "host", "setup")
    shared = Path("/srv/bare.img")
    shared.write_bytes(bare_image(tmp_path_factory.mktemp("image")).read_bytes())
    lines(*program, "image", "import", str(shared), "--name", "on-switches", "--ready", "none")
    yield program
    lines(*program, "image", "delete", "on-switches")
    lines(*program, "host", "remove")


async def test_vms_of_the_service_are_on_a_switch_that_lets_its_group_in(program: tuple[str, ...]) -> None:
    with vde_switch(LAB, "-mode", "660", "-group", service.GROUP):
        for name in ("web", "db"):
            made = create(program, name, LAB)
            assert made.returncode == 0, made.stderr
        await until_in_use(LAB, 2)
        lines("systemctl", "restart", service.UNIT)
        assert {name: vm["observed"] for name, vm in vms(*program).items()} == {"web": "running", "db": "running"}
        await until_in_use(LAB, 2)
        lines(*program, "vm", "delete", "db", "--kill")
        await until_in_use(LAB, 1)
        lines(*program, "vm", "delete", "web", "--kill")
    assert guests(service.STATE_DIR) == {}


@pytest.mark.parametrize(
    ("lab", "options", "why"),
    [
        (LAB, ("-mode", "600"), "which runs as aetherscale, may not write to"),
        (Path("/tmp/lab.ctl"), ("-mode", "666"), "there is no"),
    ],
)
def test_a_switch_that_the_service_cannot_use_is_told_before_anything_is_made(
    program: tuple[str, ...], lab: Path, options: tuple[str, ...], why: str
) -> None:
    with vde_switch(lab, *options):
        refused = create(program, "web", lab)
    assert refused.returncode == 1
    assert why in refused.stderr
    assert vms(*program) == {}
