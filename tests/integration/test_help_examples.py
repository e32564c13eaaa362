"""Every example of every help works as it stands, typed into a shell, on a node with simulated guests."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from tests.integration.conftest import MakeNode
from tests.support.cli import BIN, good, simulated_node, told
from tests.support.command_lines import commands
from tests.support.node import PATIENCE_S, RunningNode
from tests.unit.actors.compute.model.test_ssh_keys import key

pytestmark = pytest.mark.integration

NOT_RUN = {
    "aetherscale serve --nats nats://10.0.0.1:4222": "test_credentials.py serves so",
    "aetherscale log witness heads.jsonl --of host1 --nats": "test_credentials.py uses such credentials",
    "aetherscale image import https://images.example/debian-12.qcow2": "test_image_imports.py downloads",
    "aetherscale image fetch debian-13": "test_image_catalogue.py fetches from a server of its own",
    "aetherscale image update debian-13": "likewise",
    "aetherscale image import ./disk.raw.xz": "test_image_catalogue.py fetches what is compressed",
    "aetherscale image build debian-12": "`just debian-image` builds whole Debians",
    "aetherscale demo": "test_demo.py runs it",
    "aetherscale host setup": "it changes the host; tests/systemd runs it",
    "aetherscale host remove": "likewise",
    "aetherscale firewall explain --from web --to db --port tcp/5432 --at": "test_explaining.py asks of the past",
    "aetherscale vm ssh": "there is no sshd in a simulated guest",
    "aetherscale vm copy": "there is no shell in a simulated guest; test_inside.py copies",
    "aetherscale firewall watch": "nothing is dropped on a simulated host; test_watching_drops.py asks a node",
    "nats --context aetherscale micro ls": "a program of others",
}
"""By how they begin."""
STATUS = {
    "aetherscale vm exec web --json -- sh -c 'exit 7'": {7},
    "aetherscale vm exec -it web -- sh": {2},  # there is no terminal here
    # Whether all is well depends on the host.
    "aetherscale doctor": {0, 1},
    "aetherscale doctor --json": {0, 1},
}
FOLLOWING = ("aetherscale events tail", "aetherscale vm logs web -f")
AT_REST = ("aetherscale log archive", "aetherscale log import", "aetherscale log verify --state-dir")
"""What needs a state directory without a node."""


def examples() -> list[str]:
    return [example for _, command in commands() for example in command.examples]


class Shell:
    """Where a user types: a directory with the files that the examples speak of."""

    def __init__(self, node: RunningNode, directory: Path) -> None:
        self.node, self.directory = node, directory
        self.environ = {
            **node.environment,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(directory / "config"),
            "HOME": str(directory),
        }

    async def start(self, line: str) -> Process:
        found = json.loads((self.node.state_dir / "nats.json").read_text())
        line = line.replace("/mnt/elsewhere", str(self.directory))
        address = found["url"].removeprefix("nats://")
        line = line.replace("user:password@10.0.0.1:4222", f"{found['user']}:{found['password']}@{address}")
        place = self.directory / "small" if "tar c ." in line else self.directory
        return await asyncio.create_subprocess_exec(
            *("bash", "-c", f"set -o pipefail; {line}"),
            stdin=PIPE, stdout=PIPE, stderr=PIPE, env=self.environ, cwd=place, start_new_session=True,
        )  # fmt: skip

    async def run(self, line: str) -> tuple[int, str, str]:
        process = await self.start(line)
        out, err = await asyncio.wait_for(process.communicate(b"\n"), PATIENCE_S)
        assert process.returncode is not None
        assert "Traceback" not in err.decode()
        return process.returncode, out.decode(), err.decode()

    async def prepare(self, line: str) -> None:
        """Make what an example takes for granted."""
        if "--public-ip" in line or "--bridge br0" in line:
            await self.remove_networks("bridge", "br0")
        if "network" in line:
            await self.prepare_network(line)
        if "firewall group" in line:
            await self.prepare_group(line)
        elif "firewall" in line:
            await self.prepare_ports()
        vms = {vm["name"]: vm["phase"] for vm in await self.node.vms()}
        creates = " vm create " in line
        if creates and (name := line.split()[3]) in vms:
            await good(self.node, "vm", "delete", name, "--kill")
        for name in ("web", "db") if " create " not in line else ():
            if name not in vms:
                await good(self.node, "vm", "create", name, "--image", "blank")
            elif vms[name] == "stopped":
                await good(self.node, "vm", "start", name)
        await self.prepare_vms(line)

    async def prepare_vms(self, line: str) -> None:
        """The VMs that are there have what an example is about, and those that are in its way are gone."""
        if "vm attach" in line or "vm detach" in line:
            await self.prepare_attached(attached="vm detach" in line)
        if "--for stopped" in line:
            await good(self.node, "vm", "stop", "web", "--kill")
        if "image delete tiny" in line:
            for vm in await self.node.vms():
                await good(self.node, "vm", "delete", vm["id"], "--kill")

    async def prepare_attached(self, *, attached: bool) -> None:
        """The VM of an example is in a network, and there is another one that it is in, or is not yet."""
        await good(self.node, "vm", "delete", "web", "--kill")
        await self.remove_networks("name", "backup")
        await good(self.node, "network", "create", "backup")
        if "lan" not in {each["name"] for each in await told(self.node, "network", "list")}:
            await good(self.node, "network", "create", "lan")
        names = ("lan", "backup") if attached else ("lan",)
        await good(self.node, "vm", "create", "web", "--image", "blank", *(f"--network={name}" for name in names))

    async def prepare_group(self, line: str) -> None:
        """The group of an example is not there yet, or is, and no rule of another one names it."""
        there = {each["name"] for each in await told(self.node, "firewall", "group", "list")}
        for name in ("db", "web"):
            if name in there:
                await good(self.node, "firewall", "group", "delete", name)
        if " create web" not in line:
            await good(self.node, "firewall", "group", "create", "web", "--allow", "in:tcp:80")

    async def prepare_ports(self) -> None:
        """The VMs of an example are in a network that the host has a way to, and there is a group for them."""
        if "http" not in {each["name"] for each in await told(self.node, "firewall", "group", "list")}:
            await good(self.node, "firewall", "group", "create", "http", "--allow", "in:tcp:80")
        if "out" not in {each["name"] for each in await told(self.node, "network", "list")}:
            await good(self.node, "network", "create", "out", "--kind", "nat")
        vms = {vm["name"]: vm["ports"] for vm in await self.node.vms()}
        for name in ("web", "dns"):
            if not vms.get(name):
                if name in vms:
                    await good(self.node, "vm", "delete", name, "--kill")
                await good(self.node, "vm", "create", name, "--image", "blank", "--network", "out")

    async def prepare_network(self, line: str) -> None:
        """The network of an example is not there yet, or is, with no VM in it."""
        creates = " network create " in line
        name = line.split()[3] if creates else "lab"
        await self.remove_networks("name", name)
        if not creates:
            await good(self.node, "network", "create", name)

    async def remove_networks(self, field: str, value: str) -> None:
        """Remove the networks of which a field has this value, with their VMs."""
        for network in await told(self.node, "network", "list"):
            if network[field] != value:
                continue
            for vm in await self.node.vms():
                if network["id"] in {port["network-id"] for port in vm["ports"]}:
                    await good(self.node, "vm", "delete", vm["id"], "--kill")
            await good(self.node, "network", "delete", network["name"])

    async def follow(self, line: str) -> None:
        """Run what goes on for ever until it has shown something, and end it as Ctrl-C does."""
        process = await self.start(line)
        if "vm logs" in line:  # it ends with its VM, also with one that has ended before
            await good(self.node, "vm", "stop", "web", "--kill")
            await asyncio.wait_for(process.communicate(), PATIENCE_S)
            assert process.returncode == 0, line
            return
        assert process.stdout is not None
        reading = asyncio.ensure_future(process.stdout.read(1))
        while not reading.done():
            # It follows from a moment that nobody is told of.
            await good(self.node, "vm", "restart", "web")
            await asyncio.wait([reading], timeout=0.1)
        assert await reading
        os.killpg(process.pid, signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert (process.returncode, err) == (0, b""), line


async def test_every_example_does_what_it_says(make_node: MakeNode, tmp_path: Path) -> None:
    node = await simulated_node(make_node, tmp_path)
    await good(node, "vm", "create", "web", "--image", "blank")
    place = tmp_path / "home"
    (place / "small").mkdir(parents=True)
    shutil.copy(tmp_path / "blank.img", place / "debian-12.qcow2")
    (place / "setup.sh").write_text("#!/bin/sh\n")
    (place / ".ssh").mkdir()
    (place / ".ssh/id_ed25519.pub").write_text(f"{key()}\n")
    shell = Shell(node, place)
    (place / "user-data.yaml").write_text("#cloud-config\n{}\n")
    ways = {"debian-12": "aetherscale", "tiny": "tiny", "ubuntu-24.04": "cloud-init"}
    for name, way in ways.items():
        given = ("--name", name, "--ready", "channel", "--first-boot", way)
        await good(node, "image", "import", str(tmp_path / "blank.img"), *given)
    for number in range(8):
        await good(node, "vm", "create", f"vm-{number}", "--image", "blank", "--no-wait")
    await good(node, "log", "witness", str(place / "heads.jsonl"))
    lines = [line for line in examples() if not line.startswith(tuple(NOT_RUN))]
    assert all(any(line.startswith(left_out) for line in examples()) for left_out in NOT_RUN)
    ran, wrong, is_at_rest = 0, [], False
    for line in sorted(lines, key=lambda line: (line.startswith(AT_REST), "image delete tiny" in line)):
        if line.startswith("aetherscale serve") or line == "aetherscale":
            continue
        ran += 1
        if line.startswith(AT_REST):
            if not is_at_rest:
                await node.stop()
                shutil.copytree(node.state_dir, place / "copy")
            is_at_rest = True
        else:
            await shell.prepare(line)
        if "image import" in line:
            await good(node, "image", "delete", "debian-12")
        if "image build tiny" in line:
            continue  # it needs Debian's packages
        if line.startswith(FOLLOWING):
            await shell.follow(line)
            continue
        status, out, err = await shell.run(line)
        if status not in STATUS.get(line, {0}):
            wrong.append(f"$ {line}\n[{status}] {out}{err}")
        elif "--json" in line:
            assert [json.loads(each) for each in out.splitlines()], line
    assert not wrong, "\n".join(wrong)
    assert ran > 60
