"""Whose process a QEMU is: refused where it would be root's or the node's, unless that is allowed; told either way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from aetherscale.processes import users
from tests.support.eventually import asked_until
from tests.support.node import RunningNode, guests
from tests.support.raw_images import bare_image

pytestmark = pytest.mark.integration

CREATE = "aether.v1.default.cmd.compute.create-vm"
DELETE = "aether.v1.default.cmd.compute.delete-vm"
IMPORT = "aether.v1.default.cmd.images.import-image"
REPLAYED = (sys.executable, "-m", "aetherscale", "replay", "vm", "--json", "--state-dir")
ROOTLESS = ("unshare", "--user", "--map-root-user", "--keep-caps", "--")
"""As in a rootless container: root, and a map of one uid."""


class OrdinaryNode(RunningNode):
    """A node without the setting that those of other tests have."""

    allowed = ""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "AETHERSCALE_ALLOW_UNISOLATED": self.allowed}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[OrdinaryNode]:
    made = OrdinaryNode(tmp_path / "state", tmp_path / "cache")
    yield made
    await made.close()


def told(*command: str, node: RunningNode) -> Any:
    """What a program says in JSON, with the settings of the node."""
    said = subprocess.run(command, env=node.environment, capture_output=True, text=True, check=False)
    return json.loads(said.stdout)


async def created(node: RunningNode, name: str) -> dict[str, Any]:
    """The last chunk of a creation."""
    source = bare_image(node.state_dir.parent)
    await node.request(IMPORT, {"source": str(source), "name": "bare", "ready": "none"})
    return (await node.request(CREATE, {"name": name, "image": "bare", "memory-mib": 64}))[-1]


async def test_in_a_rootless_container_no_vm_starts_until_that_is_allowed(node: OrdinaryNode) -> None:
    node.within = ROOTLESS
    await node.start()
    assert any("no virtual machine starts without --allow-unisolated" in line for line in node.output)
    refused = await created(node, "web")
    assert refused["type"] == "error"
    assert "QEMU would run as root" in refused["message"]
    assert "aetherscale serve --allow-unisolated" in json.dumps(refused)
    assert guests(node.state_dir) == {}
    await node.stop()

    node.allowed = "1"
    await node.start()
    assert any("none, as --allow-unisolated says: QEMU runs as root" in line for line in node.output)
    web = (await created(node, "web"))["vm"]
    assert (web["isolation"], web["process-user"]) == ("none", "root")
    (guest,) = guests(node.state_dir)
    status = Path(f"/proc/{guest}/status").read_text()
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert f"{kind}:\t0000000000000000" in status, kind
    await node.stop()
    assert [vm["process-user"] for vm in told(*REPLAYED, str(node.state_dir), node=node)] == ["root"]

    node.allowed = ""
    await node.start()
    assert set(guests(node.state_dir)) == {guest}, "what runs is adopted"
    gone = await node.request(DELETE, {"vm-id": web["id"], "kill": True})
    assert gone[-1]["type"] == "result", gone[-1]


async def test_an_ordinary_users_vms_start_only_where_that_is_allowed(node: OrdinaryNode) -> None:
    node.within = ("unshare", "--user", "--map-user=1234", "--map-group=1234", "--")
    await node.start()
    refused = await created(node, "web")
    assert "QEMU would run as the node's own user, uid 1234" in refused["message"]
    assert guests(node.state_dir) == {}
    await node.stop()
    node.allowed = "yes"
    await node.start()
    web = (await created(node, "web"))["vm"]
    assert (web["isolation"], web["process-user"]) == ("none", "node")
    (guest,) = guests(node.state_dir)
    assert "CapEff:\t0000000000000000" in Path(f"/proc/{guest}/status").read_text()


@pytest.mark.skipif(users.way() != "switch", reason="only root has capabilities to lack")
@pytest.mark.parametrize("lacking", ["setuid", "setgid", "kill", "setpcap"])
async def test_a_root_without_the_right_capabilities_starts_no_vm_as_root(node: OrdinaryNode, lacking: str) -> None:
    node.within = ("setpriv", f"--bounding-set=-{lacking}", "--inh-caps=-all", "--")
    await node.start()
    last = await created(node, "web")
    if lacking == "setpcap":
        # The bounding set stays; a process that changes its uid loses every capability all the same.
        assert last["vm"]["process-user"] == "own"
        (guest,) = guests(node.state_dir)
        assert "CapPrm:\t0000000000000000" in Path(f"/proc/{guest}/status").read_text()
        return
    assert "QEMU would run as root" in last["message"]
    findings = told(*node.within, sys.executable, "-m", "aetherscale", "doctor", "--json", node=node)
    (found,) = (each for each in findings if each["check"] == "isolation")
    assert (found["status"], f"CAP_{lacking.upper()} is missing" in found["found"]) == ("error", True)


@pytest.mark.skipif(users.way() != "switch", reason="only root has capabilities to lack")
async def test_a_root_that_may_not_empty_its_bounding_set_gives_qemu_no_capability_all_the_same(
    node: OrdinaryNode,
) -> None:
    node.within = ("setpriv", "--bounding-set=-setuid,-setpcap", "--inh-caps=-all", "--")
    node.allowed = "1"
    await node.start()
    web = (await created(node, "web"))["vm"]
    assert (web["isolation"], web["process-user"]) == ("none", "root")
    (guest,) = guests(node.state_dir)
    status = Path(f"/proc/{guest}/status").read_text()
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert f"{kind}:\t0000000000000000" in status, kind
    assert "NoNewPrivs:\t1" in status, "so that no exec gives it any"
    assert "CapBnd:\t0000000000000000" not in status, "or it could have been emptied"


DOCKERS: Final = (
    "chown,dac_override,fsetid,fowner,mknod,net_raw,setgid,setuid,setfcap,setpcap,net_bind_service,sys_chroot,kill,"
    "audit_write"
)
"""What a container has unless it is told otherwise: CAP_SYS_PTRACE is not among it."""
IN_DOCKER: Final = ("setpriv", "--bounding-set=-all,+" + DOCKERS.replace(",", ",+"), "--inh-caps=-all", "--")


@pytest.mark.skipif(users.way() != "switch", reason="only root has capabilities to lack")
async def test_a_root_that_may_not_look_at_its_guests_finds_them_again(node: OrdinaryNode) -> None:
    node.within = IN_DOCKER
    await node.start()
    web = (await created(node, "web"))["vm"]
    assert web["process-user"] == "own"
    (guest,) = guests(node.state_dir)
    await node.kill()
    await node.start()
    shown = (await node.request("aether.v1.default.cmd.compute.vm-info", {"vm-id": "web"}))[-1]["vm"]
    assert (shown["observed"], shown["restarts"]) == ("running", 0)
    stopped = await node.request("aether.v1.default.cmd.compute.stop-vm", {"vm-id": "web", "kill": True})
    assert (stopped[-1]["type"], guests(node.state_dir)) == ("result", {})
    await node.request("aether.v1.default.cmd.compute.start-vm", {"vm-id": "web"})
    assert list(guests(node.state_dir)) != [guest]
    await node.kill()
    await node.start()
    gone = await node.request(DELETE, {"vm-id": "web", "kill": True})
    assert (gone[-1]["type"], guests(node.state_dir)) == ("result", {})


@pytest.mark.skipif(users.way() != "switch", reason="only root has capabilities to lack")
async def test_a_guest_that_only_its_socket_tells_of_is_ended_all_the_same(node: OrdinaryNode) -> None:
    node.within = IN_DOCKER
    await node.start()
    await created(node, "web")
    assert len(guests(node.state_dir)) == 1
    await node.kill()
    # Another log, which knows nothing of it; nor does the directory say which process it is.
    for path in (
        *node.state_dir.glob("events*"),
        *node.state_dir.glob("views*"),
        *node.state_dir.glob("vms/*/run.json"),
    ):
        path.unlink()
    await node.start()
    await until(lambda: guests(node.state_dir) == {})


@pytest.mark.skipif(users.way() != "switch", reason="only root can mount")
async def test_where_proc_hides_other_users_no_guest_is_given_one(node: OrdinaryNode) -> None:
    hidden = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    node.within = ("unshare", "--mount", "sh", "-c", hidden, "sh", *IN_DOCKER)
    await node.start()
    refused = await created(node, "web")
    assert "QEMU would run as root" in refused["message"]
    findings = told(*node.within, sys.executable, "-m", "aetherscale", "doctor", "--json", node=node)
    (found,) = (each for each in findings if each["check"] == "isolation")
    assert "CAP_SYS_PTRACE is missing, and /proc is mounted with hidepid=" in found["found"]


async def until(holds: Callable[[], bool]) -> None:
    """Wait until it holds, however long that takes within the bound of every wait."""

    async def asked() -> bool:
        return holds()

    await asked_until(asked)
