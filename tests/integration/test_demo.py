"""The demo, with real guests: in a network namespace of the test's own, or as any user has it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from aetherscale.actors.network import removal
from aetherscale.actors.network.claim import claim
from aetherscale.bus.peers import name_of
from aetherscale.setup import demonetwork
from aetherscale.setup.demoprocesses import processes_in
from tests.support.guest_namespaces import sh
from tests.support.network_namespaces import missing as missing_namespaces
from tests.support.network_namespaces import network_namespace
from tests.support.node import PATIENCE_S, ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

MISSING = missing_namespaces() or ("" if shutil.which("dnsmasq") else "needs dnsmasq")
needs_networks = pytest.mark.skipif(bool(MISSING), reason=MISSING)
FORWARDING = (Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/ipv6/conf/all/forwarding"))
WITHOUT_NET_ADMIN = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")


@pytest.fixture
def host() -> Iterator[None]:
    """Never the namespace of this machine where the demo could make a network in it. It forwards nothing."""
    if missing_namespaces():
        yield
        return
    with network_namespace():
        sh("ip", "link", "set", "lo", "up")
        for setting in FORWARDING:
            setting.write_text("0")
        yield


@pytest.fixture
def forwarding_host(host: None) -> None:
    """The same, and it forwards."""
    if not missing_namespaces():
        for setting in FORWARDING:
            setting.write_text("1")


@pytest.fixture
def cache(pytestconfig: pytest.Config) -> Path:
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("debian")


class Demo:
    """One run of the demo, with all that it says on one stream."""

    def __init__(self, process: Process, directory: Path) -> None:
        self.process = process
        self.directory = directory
        self.text = ""

    @classmethod
    async def start(cls, cache: Path, directory: Path, *around: str, **more: str) -> Demo:
        directory.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AETHERSCALE_")}
        environment = kept | {
            "AETHERSCALE_CACHE_DIR": str(cache),
            "AETHERSCALE_ACCELERATOR": "tcg",
            "TMPDIR": str(directory),
            **more,
        }
        command = (*around, sys.executable, "-m", "aetherscale", "demo")
        return cls(
            await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT, env=environment, cwd=ROOT),
            directory,
        )

    async def until(self, wanted: str) -> None:
        """Read until a line has this in it."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while wanted not in (line := (await self.process.stdout.readline()).decode()):
                assert line, f"the demo ended before {wanted!r}: {self.text}"
                self.text += line
        self.text += line

    async def end(self) -> int:
        """Read to the end; the exit status."""
        rest, _ = await asyncio.wait_for(self.process.communicate(), 300)
        self.text += rest.decode()
        assert self.process.returncode is not None
        return self.process.returncode

    async def interrupted(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await self.end()

    def serving(self) -> int:
        """The pid of its node."""
        pids = [
            pid for pid in processes_in(self.directory) if b"\0serve\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert len(pids) == 1, pids
        return pids[0]

    def left(self) -> list[str]:
        """All that is left of it: files, processes, mounts of processes, and in the namespace devices and rules."""
        found = [str(path) for path in self.directory.iterdir()]
        found += [f"process {pid}" for pid in processes_in(self.directory)]
        for entry in Path("/proc").glob("[0-9]*/mountinfo"):
            try:
                if f"{self.directory}/" in entry.read_text():
                    found.append(f"mount in {entry}")
            except OSError:
                continue
        return [*found, *(removal.present() if not missing_namespaces() else ())]


async def test_the_demo_goes_from_nothing_to_a_ready_vm_and_back(
    forwarding_host: None, cache: Path, tmp_path: Path
) -> None:
    demo = await Demo.start(cache, tmp_path / "tmp")
    assert await demo.end() == 0, demo.text
    for shown in (
        "ready: node",
        "tiny",
        "VmReady",
        "`replay vm --json` and `vm list --json` are equal",
        f"unix:{name_of(os.geteuid())} asked to create the VM 'web'",
        "No process, no file and no socket of the VM is left",
        "are as they were written",
        "Nothing is left: no process, no file, no socket.",
    ):
        assert shown in demo.text, shown
    assert demo.left() == []
    if MISSING:
        return
    assert re.search(r"^\$ aetherscale network create lab --kind nat$", demo.text, re.MULTILINE)
    [address] = set(re.findall(r"^web +ready .* 10\.[0-9.]+ (f[0-9a-f:]+) ", demo.text, re.MULTILINE))
    assert f"PING web ({address})" in demo.text
    assert "1 packets received" in demo.text
    led = r"tcp/80 from host to web, where the forward \d+:80/tcp leads,"
    opened, closed = demo.text.split("$ aetherscale firewall group set http --nothing")
    assert re.search(r"^\$ (curl|python3) .*(\n.*)?\n.*Hello", opened, re.MULTILINE)
    assert "Hello" not in closed.split("vm stop")[0]
    assert re.search(rf"{led} does not pass\.\nNo group of 'web' allows it\.", closed)
    assert re.search(rf"{led} passes by the rule in:tcp:80\.\nThe group 'http' allows it\.", closed)
    assert re.findall(r"event \| .*  (VmReady)  ", demo.text) == ["VmReady"] * 2, demo.text
    assert "No bridge, no tap, no rule and no resolver of the network is left." in demo.text


async def test_where_there_can_be_no_network_it_says_why_and_shows_one_vm(
    host: None, cache: Path, tmp_path: Path
) -> None:
    around = WITHOUT_NET_ADMIN if os.geteuid() == 0 else ()
    demo = await Demo.start(cache, tmp_path / "tmp", *around)
    assert await demo.end() == 0, demo.text
    why = demonetwork.AS_ROOT if os.geteuid() else "this process does not have the capability CAP_NET_ADMIN; for both: "
    assert "\n── No network, and no firewall ─" in demo.text
    assert why in demo.text
    assert "network create" not in demo.text
    assert "firewall group" not in demo.text
    assert "$ aetherscale vm exec web -- uname -a\nLinux web" in demo.text
    assert "Nothing is left: no process, no file, no socket." in demo.text
    assert demo.left() == []


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("$ aetherscale image build tiny", signal.SIGTERM),
        ("$ aetherscale network create lab", signal.SIGINT),
        ("making the bridge", signal.SIGINT),
        ("$ aetherscale vm create db", signal.SIGHUP),
        ("$ aetherscale vm create web", signal.SIGINT),
        ("VmBooted", signal.SIGINT),
        ("VmBooted", signal.SIGTERM),
        ("VmBooted", signal.SIGHUP),
        ("$ aetherscale vm delete", signal.SIGINT),
        ("$ aetherscale network delete lab", signal.SIGINT),
    ],
)
async def test_a_demo_that_is_interrupted_takes_everything_away(
    host: None, cache: Path, tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    if MISSING and ("network" in moment or "bridge" in moment or "db" in moment):
        pytest.skip(MISSING)
    demo = await Demo.start(cache, tmp_path / "tmp")
    await demo.until(moment)
    assert await demo.interrupted(number) == 128 + number, demo.text
    assert "interrupted; everything has been taken away again" in demo.text
    assert demo.left() == []


@needs_networks
async def test_a_second_interrupt_cuts_nothing_short(host: None, cache: Path, tmp_path: Path) -> None:
    demo = await Demo.start(cache, tmp_path / "tmp")
    await demo.until("VmBooted")
    demo.process.send_signal(signal.SIGINT)
    while demo.process.returncode is None:
        await asyncio.sleep(0.02)
        if demo.process.returncode is None:
            demo.process.send_signal(signal.SIGINT)
    assert demo.left() == []


@needs_networks
async def test_the_network_goes_also_where_the_node_was_killed(host: None, cache: Path, tmp_path: Path) -> None:
    demo = await Demo.start(cache, tmp_path / "tmp")
    await demo.until("VmBooted")
    os.kill(demo.serving(), signal.SIGKILL)
    assert await demo.end() == 1, demo.text
    assert "the demo failed: " in demo.text
    assert demo.left() == []


@needs_networks
async def test_a_second_demo_leaves_the_first_alone(host: None, cache: Path, tmp_path: Path) -> None:
    first = await Demo.start(cache, tmp_path / "first")
    await first.until("VmBooted")
    before = removal.present()
    assert before
    second = await Demo.start(cache, tmp_path / "second")
    await second.until("another node has the networks of this host; for both: ")
    await second.until("$ aetherscale vm create web --image tiny --memory 256M --timeout 5m")
    assert await second.interrupted(signal.SIGINT) == 130
    assert removal.present() == before
    assert await first.end() == 0, first.text
    assert "1 packets received" in first.text
    # The host forwards nothing, so the page is fetched by the other guest.
    assert "No port of the host leads into it: the host forwards no packets" in first.text
    opened, closed = first.text.split("$ aetherscale firewall group set http --nothing")
    fetched = "$ aetherscale vm exec db -- timeout 2 wget -qO- http://web/\n"
    assert f"{fetched}Hello\n" in opened
    assert fetched in closed
    assert "tcp/80 from db to web does not pass.\nNo group of 'web' allows it." in closed
    assert "tcp/80 from db to web passes by the rule in:tcp:80.\n" in closed
    assert [*first.left(), *second.left()] == []


@contextmanager
def claimed() -> Iterator[None]:
    with closing(claim()):
        yield


@contextmanager
def bridge_of_another() -> Iterator[None]:
    sh("ip", "link", "add", "aeb0123456789ab", "type", "bridge")
    yield


@contextmanager
def rules_of_another() -> Iterator[None]:
    sh("nft", "add", "table", "bridge", "aetherscale")
    yield


@needs_networks
@pytest.mark.parametrize(
    ("others", "why"),
    [
        (claimed, "another node has the networks of this host"),
        (bridge_of_another, "another node has networks on this host (aeb0123456789ab)"),
        (rules_of_another, "another node has networks on this host (table bridge aetherscale)"),
    ],
)
def test_what_another_node_has_is_left_alone(
    host: None, tmp_path: Path, others: Callable[[], AbstractContextManager[None]], why: str
) -> None:
    """Also one that does not run: its guests may, behind its rules."""
    assert demonetwork.lacking("demo-1", tmp_path) is None
    with others():
        lacking = demonetwork.lacking("demo-1", tmp_path)
    assert lacking is not None
    assert (lacking.reason, bool(lacking.remedy)) == (why, True)


@needs_networks
def test_a_removal_leaves_the_rules_to_a_node_that_has_them_by_now(host: None, tmp_path: Path) -> None:
    sh("nft", "add", "table", "bridge", "aetherscale")
    with closing(claim()):
        demonetwork.remove("demo-1", tmp_path)
        assert removal.present() == ("table bridge aetherscale",)
    demonetwork.remove("demo-1", tmp_path)
    assert removal.present() == ()


@needs_networks
def test_a_removal_leaves_the_rules_where_another_node_has_devices(host: None, tmp_path: Path) -> None:
    """It does not run, but the guests behind its devices may."""
    sh("ip", "link", "add", "aeb0123456789ab", "type", "bridge")
    sh("ip", "link", "set", "aeb0123456789ab", "alias", "aetherscale host1 network 0123456789abcdef")
    sh("nft", "add", "table", "bridge", "aetherscale")
    demonetwork.remove("demo-1", tmp_path)
    assert removal.present() == ("aeb0123456789ab", "table bridge aetherscale")
    sh("ip", "link", "delete", "aeb0123456789ab")
    demonetwork.remove("demo-1", tmp_path)
    assert removal.present() == ()


async def test_a_demo_that_cannot_be_had_says_why(host: None, cache: Path, tmp_path: Path) -> None:
    """Without apt there is no recipe."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in ("sh", "setpriv", "prlimit", "qemu-system-x86_64"):
        found = shutil.which(program)
        assert found is not None
        (programs / program).symlink_to(found)
    demo = await Demo.start(cache, tmp_path / "tmp", PATH=str(programs))
    assert await demo.end() == 1
    assert "building: this host has no apt-get" in demo.text
    assert "the demo failed: `aetherscale image build tiny` ended with status 1" in demo.text
    assert demo.left() == []
