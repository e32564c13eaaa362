"""HTTP as a stranger meets it: the real node, real guests, curl and httpx, and SIGKILL at the worst moments."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import MakeNode
from tests.support.http_node import event_stream, scrape
from tests.support.nats_server import taken_port
from tests.support.node import PATIENCE_S, ROOT, RunningNode, guests

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SMALL = {"image": "tiny", "memory-mib": 128, "name": "web"}
ADDRESS = re.compile(r"http://(?:127\.0\.0\.1|\[::1\]):[0-9]+")


def unix(node: RunningNode) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=str(node.state_dir / "http.sock"))
    return httpx.AsyncClient(base_url="http://localhost", transport=transport, timeout=PATIENCE_S)


def said(node: RunningNode) -> str:
    """What the node says of HTTP at its start."""
    return next(line for line in node.output if line.startswith("http "))


def tcp(node: RunningNode) -> httpx.AsyncClient:
    found = ADDRESS.search(said(node))
    assert found is not None
    token = (node.state_dir / "http.token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url=found[0], headers=headers, timeout=PATIENCE_S, trust_env=False)


def lines_of(page: Path, marker: str) -> str:
    """The first block of shell commands of a page that has a word."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    return str(next(block for block in blocks if marker in block))


async def shell(script: str, **environ: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euc", script),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, **environ},
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 0, err.decode() + out.decode()
    return out.decode()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
class TestCurl:
    async def test_the_lines_of_the_page_work_as_they_stand(self, node: RunningNode) -> None:
        found = ADDRESS.search(said(node))
        assert found is not None
        out = await shell(lines_of(ROOT / "docs/http.md", "curl"), STATE=str(node.state_dir), HTTP=found[0])
        assert '"phase":"ready"' in out
        assert '"phase":"stopped"' in out
        assert '"phase":"deleted"' in out
        assert "event: VmBooted" in out
        assert f'"node":"{node.name}"' in out

    async def test_the_lines_of_the_readme_work_as_they_stand(self, node: RunningNode) -> None:
        line = lines_of(ROOT / "README.md", "curl")
        # A socket's path has at most 107 bytes, and pytest's own directories are called after the test.
        with tempfile.TemporaryDirectory(prefix="home-") as home:
            state = Path(home, ".local/state")
            state.mkdir(parents=True)
            (state / "aetherscale").symlink_to(node.state_dir)
            made = json.loads(await shell(line, HOME=home))
        assert (made["name"], made["phase"]) == ("web", "ready")
        assert [vm["id"] for vm in await node.vms()] == [made["id"]]


class TestOneNode:
    async def test_both_ways_in_are_open_and_nats_sees_the_same(self, node: RunningNode) -> None:
        async with unix(node) as client, tcp(node) as other:
            made = await client.post("/v1/vms?wait=ready", json=SMALL)
            assert (made.status_code, made.json()["phase"]) == (201, "ready")
            assert (await other.get("/v1/vms/web")).json() == made.json() == await node.vm("web")
            told = await client.get("/v1/vms/web/logs?lines=5")
            assert told.text.splitlines()[-1].startswith('{"type":"result"')
            ran = await client.post("/v1/vms/web/exec", json={"command": ["uname", "-s"]})
            assert (ran.status_code, ran.json().get("stdout")) in {(200, "Linux\n"), (501, None), (503, None)}
            status, out, _ = await node.cli("events", "list", "--json")
            assert status == 0
            [asked] = [each for each in json.loads(out) if each["type"] == "VmRequested"]
            assert asked["actor"] == "unix:root" if os.geteuid() == 0 else asked["actor"].startswith("unix:")

    async def test_events_come_as_they_happen_and_go_on_after_a_restart(self, make_node: MakeNode) -> None:
        node = make_node("--simulated")
        await node.start()
        async with unix(node) as client:
            async with event_stream(client, "/v1/events?kind=network") as stream:
                assert (await client.post("/v1/networks?wait=30", json={"name": "lab"})).status_code == 201
                first = await stream.named("NetworkRequested")
            await node.kill()
            await node.start()
        async with unix(node) as client:
            path = "/v1/events?kind=network"
            async with event_stream(client, path, Last_Event_ID=first["id"]) as stream:
                up = await stream.named("NetworkUp")
                assert int(up["id"]) > int(first["id"])

    async def test_a_node_whose_broker_is_away_answers(self, make_node: MakeNode) -> None:
        with taken_port() as port:
            node = make_node("--simulated", "--nats", f"nats://127.0.0.1:{port}")
            await node.start()
            async with unix(node) as client:
                assert (await client.post("/v1/networks?wait=30", json={"name": "lab"})).status_code == 201
                assert (await client.get("/v1/networks")).json()["count"] == 1


class TestFigures:
    async def test_a_qemu_that_hangs_costs_the_figures_of_its_own_disk(self, node: RunningNode) -> None:
        async with unix(node) as client:
            made = [(await client.post("/v1/vms?wait=ready", json={**SMALL, "name": name})).json() for name in "ab"]
            of_a, of_b = ((("vm", vm["id"]),) for vm in made)
            whole = await scrape(client)
            for of_vm in (of_a, of_b):
                assert whole["aetherscale_vm_ready", of_vm] == 1
                assert whole["aetherscale_vm_cpu_seconds_total", of_vm] > 0.1
                assert whole["aetherscale_vm_disk_read_bytes_total", of_vm] > 1 << 20
                assert whole["aetherscale_vm_memory_limit_bytes", of_vm] == 128 << 20
                assert whole["aetherscale_vm_memory_resident_bytes", of_vm] > 32 << 20
            info = (("image", "tiny"), ("name", "a"), ("tenant", "default"), *of_a)
            assert whole["aetherscale_vm_info", info] == 1
            written = {"command": ["sh", "-c", "head -c 3000000 /dev/urandom > /data/file; sync"]}
            ran = await client.post("/v1/vms/b/exec", json=written)
            assert (ran.status_code, ran.json().get("exit-code")) == (200, 0), ran.text
            (pid,) = (pid for pid, vm_id in guests(node.state_dir).items() if vm_id == made[0]["id"])
            os.kill(pid, signal.SIGSTOP)
            try:
                hung = await scrape(client)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert ("aetherscale_vm_disk_read_bytes_total", of_a) not in hung
            assert hung["aetherscale_vm_cpu_seconds_total", of_a] > 0.1
            wrote = "aetherscale_vm_disk_written_bytes_total"
            assert hung[wrote, of_b] >= whole[wrote, of_b] + 3_000_000


class TestDeath:
    @pytest.mark.parametrize("moment", ["sent", "accepted", "VmBooted"])
    async def test_a_key_makes_one_vm_wherever_the_node_dies(self, node: RunningNode, moment: str) -> None:
        headers = {"Idempotency-Key": "the one"}
        async with unix(node) as client, event_stream(client, "/v1/events") as stream, unix(node) as other:
            asking = asyncio.ensure_future(other.post("/v1/vms?wait=ready", json=SMALL, headers=headers))
            if moment == "accepted":
                await stream.named("VmRequested")
            elif moment != "sent":
                await stream.named(moment)
            await node.kill()
            with pytest.raises(httpx.TransportError):
                await asking
        await node.start()
        async with unix(node) as client:
            again = await client.post("/v1/vms?wait=ready", json=SMALL, headers=headers)
            assert (again.status_code, again.json()["phase"]) == (201, "ready")
            repeat = await client.post("/v1/vms?wait=ready", json=SMALL, headers=headers)
            assert repeat.json()["id"] == again.json()["id"]
            assert (await client.get("/v1/operations/the%20one")).json()["status"] == "done"
        assert len(await node.vms()) == 1
        assert set(guests(node.state_dir).values()) == {again.json()["id"]}

    async def test_what_a_dead_client_asked_for_is_done(self, node: RunningNode) -> None:
        body = json.dumps(SMALL).encode()
        client = await node.client()
        told = await client.subscribe("aether.v1.*.evt.>")
        await client.flush()
        _, writer = await asyncio.open_unix_connection(str(node.state_dir / "http.sock"))
        writer.write(
            b"POST /v1/vms?wait=ready HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Idempotency-Key: dead\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await told.next_msg(PATIENCE_S)
        writer.transport.abort()
        await node.until_vm("web", phase="ready")
        async with unix(node) as other:
            assert (await other.get("/v1/operations/dead")).json()["status"] == "done"

    async def test_half_a_request_of_a_dead_client_does_nothing(self, node: RunningNode) -> None:
        _, writer = await asyncio.open_unix_connection(str(node.state_dir / "http.sock"))
        writer.write(
            b"POST /v1/networks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n"
            b'{"name":"lab"'
        )
        await writer.drain()
        writer.transport.abort()
        async with unix(node) as client:
            assert (await client.get("/v1/networks")).json()["count"] == 0


class TestStart:
    async def test_a_port_that_is_taken_keeps_no_node_from_running(self, make_node: MakeNode) -> None:
        with taken_port() as port:
            node = make_node("--simulated", "--http", f"127.0.0.1:{port}")
            await node.start()
            assert f"another program listens at 127.0.0.1:{port}" in said(node)
            async with unix(node) as client:
                assert (await client.get("/v1/vms")).status_code == 200
            status, _, err = await node.cli("node", "list")
            assert status == 0
            assert f"another program listens at 127.0.0.1:{port}, so HTTP is not open there" in err

    async def test_without_http_nothing_is_open(self, make_node: MakeNode) -> None:
        node = make_node("--simulated", "--no-http")
        await node.start()
        assert "closed, as --no-http says" in said(node)
        assert not (node.state_dir / "http.sock").exists()
        assert not (node.state_dir / "http.token").exists()
        assert "gateways/http" not in Path(f"/proc/{node.pid}/maps").read_text()

    async def test_a_socket_that_a_dead_node_left_is_replaced(self, make_node: MakeNode) -> None:
        node = make_node("--simulated", "--http", "[::1]:0")
        await node.start()
        await node.kill()
        assert (node.state_dir / "http.sock").exists()
        await node.start()
        async with unix(node) as client:
            assert (await client.get("/v1/vms")).status_code == 200

    async def test_what_is_in_the_way_of_the_socket_keeps_no_node_from_running(self, make_node: MakeNode) -> None:
        node = make_node("--simulated")
        node.state_dir.mkdir(mode=0o700)
        (node.state_dir / "http.sock").write_text("of somebody else")
        (node.state_dir / "http.token").symlink_to("/dev/null")
        await node.start()
        assert f"the Unix socket {node.state_dir}/http.sock cannot be open: it is there and is no socket" in said(node)
        assert f"{node.state_dir}/http.token cannot be used: it is a symbolic link" in said(node)
        assert (node.state_dir / "http.sock").read_text() == "of somebody else"
        assert (await node.cli("vm", "list"))[0] == 0

    async def test_ipv6_is_a_loopback_too(self, make_node: MakeNode) -> None:
        node = make_node("--simulated", "--http", "[::1]:0")
        await node.start()
        async with tcp(node) as client:
            assert (await client.post("/v1/networks?wait=30", json={"name": "lab"})).status_code == 201
            assert (await client.get("/v1/networks/lab")).json()["requested-by"] == "token:node"

    async def test_it_ends_in_time_with_readers_and_waiters(self, make_node: MakeNode) -> None:
        node = make_node("--simulated")
        await node.start()
        async with unix(node) as client, event_stream(client, "/v1/events") as stream:
            assert await node.stop() == 0
            assert await stream.ended()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
    @pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
    async def test_another_user_of_the_host_is_kept_out(self, make_node: MakeNode) -> None:
        node = make_node("--simulated")
        await node.start()
        curl = f"curl -sS -o /dev/null -w '%{{http_code}}' --unix-socket {node.state_dir}/http.sock http://localhost/v1"
        nobody = f"setpriv --reuid=65534 --regid=65534 --clear-groups {curl}"
        assert "200" in await shell(curl)
        assert "000" in await shell(f"{nobody} 2>&1 || true")
        for above in (node.state_dir, *node.state_dir.parents[:-1]):
            above.chmod(0o755)
        (node.state_dir / "http.sock").chmod(0o666)
        assert "403" in await shell(nobody), "where the directory is open, the kernel's word decides"
        async with unix(node) as client:
            assert (await client.get("/v1/events?after=0", headers={"Origin": "http://x"})).status_code == 403


def test_commands_do_without_http() -> None:
    code = (
        "import sys; from aetherscale.__main__ import main\n"
        "sys.argv = ['aetherscale', 'vm', 'list', '--state-dir', '/x']; main(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    modules = done.stdout.split()
    assert "aetherscale.__main__" in modules
    assert not [
        name for name in modules if name in ("h11", "http.client") or name.startswith("aetherscale.gateways.http")
    ]


async def test_hostile_clients_keep_nobody_waiting(make_node: MakeNode) -> None:
    """Heads that drip, readers that take nothing, connections that say nothing: the node answers others meanwhile."""
    node = make_node("--simulated")
    await node.start()
    made: list[asyncio.StreamWriter] = []
    path = str(node.state_dir / "http.sock")
    for number in range(300):
        _, writer = await asyncio.open_unix_connection(path, limit=1)
        sent = (b"", b"GET /v1/openapi.json HTTP/1.1\r\n", b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 30)
        writer.write(sent[number % 3])
        made.append(writer)
    before = _rss_mib(node.pid)
    async with unix(node) as client:
        for _ in range(50):
            answer: Any = await client.get("/v1/vms")
            assert answer.status_code == 200
    assert _rss_mib(node.pid) - before < 60
    for writer in made:
        writer.transport.abort()
    os.kill(node.pid, signal.SIGTERM)
    await node.ended()


def _rss_mib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
