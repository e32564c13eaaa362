"""The ways to a node: none there, one lost, the first version's words, a terminal."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client as Peer
from nats.aio.msg import Msg

from aetherscale.__main__ import program
from aetherscale.bus.endpoint import write_endpoint
from aetherscale.gateways.cli.client import Client
from aetherscale.gateways.cli.failures import Failure
from aetherscale.settings import Settings
from tests.integration.conftest import MakeNode
from tests.support.cli import BIN, good, run, simulated_node, told
from tests.support.nats_server import NatsServer
from tests.support.node import PATIENCE_S, RunningNode
from tests.support.terminal import Terminal

pytestmark = pytest.mark.integration


@pytest.fixture
async def node(make_node: MakeNode, tmp_path: Path) -> RunningNode:
    """A node with simulated guests and an image for them."""
    return await simulated_node(make_node, tmp_path)


def seconds(shown: str, phase: str) -> list[int]:
    """What the line that rewrites itself has said of the time, in its order."""
    return [int(found) for found in re.findall(rf"web: {phase}  (\d+) s", shown)]


class TestNoNode:
    async def test_without_a_state_directory_the_place_and_the_command_are_named(self, tmp_path: Path) -> None:
        status, _, err = await run("vm", "list", "--state-dir", str(tmp_path / "none"))
        assert status == 4
        assert f"there is no {tmp_path}/none/nats.json" in err
        assert f"hint: aetherscale serve --state-dir {tmp_path}/none" in err

    async def test_a_node_that_has_gone_is_told_with_its_server(self, node: RunningNode) -> None:
        url = json.loads((node.state_dir / "nats.json").read_text())["url"]
        await node.stop()
        status, _, err = await node.cli("vm", "list", "--json")
        error = json.loads(err)
        assert (status, error["code"]) == (4, 503)
        assert url in error["message"]
        assert str(node.state_dir / "nats.json") in error["message"]

    async def test_a_server_without_a_node_answers_at_once(self, tmp_path: Path) -> None:
        server = NatsServer(tmp_path / "store")
        await server.start()
        write_endpoint(tmp_path, server.endpoint)
        for words in (("vm", "list"), ("vm", "create", "--image", "x"), ("vm", "console", "web")):
            status, _, err = await run(*words, "--state-dir", str(tmp_path))
            assert status == 4, err
            assert f"no node answers on {server.endpoint.url}" in err
        status, _, err = await run("vm", "list", "--nats", server.endpoint.url, "--state-dir", "/nowhere")
        assert (status, "from --nats or the settings" in err) == (4, True)
        await server.kill()

    async def test_wrong_credentials_are_told_without_the_password(self, tmp_path: Path) -> None:
        server = NatsServer(tmp_path / "store", authorization={"user": "u", "password": "right"})
        await server.start()
        address = server.endpoint.url.removeprefix("nats://")
        status, _, err = await run("vm", "list", "--nats", f"nats://u:wrong-secret@{address}")
        assert (status, "Authorization Violation" in err, "secret" in err) == (4, True, False)
        await server.kill()

    async def test_a_node_that_says_nothing_is_not_waited_for_for_ever(self, tmp_path: Path) -> None:
        server = NatsServer(tmp_path / "store")
        await server.start()
        write_endpoint(tmp_path, server.endpoint)
        peer = await nats.connect(server.endpoint.url)
        await peer.subscribe("aether.v1.default.cmd.compute.list-vms")
        await peer.flush()
        client = Client(Settings(tmp_path, "host1"), program())
        with pytest.raises(Failure, match=r"no node answered on .* within 0\."):
            await asyncio.to_thread(client.items, "compute", "list-vms", {}, timeout_s=0.1)
        client.close()
        await peer.close()
        await server.kill()


class TestNetworks:
    async def test_a_network_is_shown_with_its_vms_and_several_are_deleted_at_once(self, node: RunningNode) -> None:
        for name in ("lab", "dmz", "web"):
            await good(node, "network", "create", name)
        for name in ("one", "two"):
            await good(node, "vm", "create", name, "--image", "blank", "--network", "lab")
        await good(node, "vm", "create", "three", "--image", "blank", "--network", "dmz")
        shown = await good(node, "network", "show", "lab")
        (view,) = [each for each in await told(node, "network", "list") if each["name"] == "lab"]
        fields = dict(line.split(maxsplit=1) for line in shown.splitlines())
        assert (fields["vms"], fields["device"]) == ("one, two", view["device"])
        assert fields["resolver"] == ", ".join(view["resolver"])
        status, out, err = await node.cli("network", "delete", "lab", "web", "dmz", "web")
        assert (status, out.count("is deleted")) == (1, 1), "those with VMs in them stay"
        assert err.count("error: ") == 2
        assert [each["name"] for each in await told(node, "network", "list")] == ["dmz", "lab"]
        await good(node, "vm", "delete", "three", "one", "two")
        deleted = await told(node, "network", "delete", "lab", "dmz")
        assert [(each["name"], each["phase"]) for each in deleted] == [("lab", "deleted"), ("dmz", "deleted")]


class TestLostConnections:
    async def test_a_command_is_sent_again_under_its_key(self, tmp_path: Path) -> None:
        server = NatsServer(tmp_path / "store")
        await server.start()
        write_endpoint(tmp_path, server.endpoint)
        keys: list[str] = []
        accepted, loop = asyncio.Event(), asyncio.get_running_loop()

        async def answer(message: Msg) -> None:
            assert message.headers is not None
            keys.append(message.headers["Nats-Msg-Id"])
            client = message._client
            await client.publish(message.reply, b'{"type":"status","status":"allocating","vm-id":"0123456789abcdef"}')
            if len(keys) == 2:
                await client.publish(message.reply, b'{"type":"result","vm-id":"0123456789abcdef"}')
            await client.flush()

        async def serve() -> Peer:
            peer = await nats.connect(server.endpoint.url, allow_reconnect=False)
            await peer.subscribe("aether.v1.default.cmd.compute.create-vm", cb=answer)
            await peer.flush()
            return peer

        def ask() -> list[dict[str, Any]]:
            chunks = []
            with closing(Client(Settings(tmp_path, "host1"), program())) as client:
                for chunk in client.ask("compute", "create-vm", {}, timeout_s=PATIENCE_S, command=True):
                    chunks.append(chunk)
                    loop.call_soon_threadsafe(accepted.set)
            return chunks

        lost = await serve()
        asking = asyncio.ensure_future(asyncio.to_thread(ask))
        await accepted.wait()
        await server.kill()
        await server.start()
        peer = await serve()
        chunks = await asking
        # nats-py leaves the socket of a connection that was lost to the garbage collector, which complains.
        if lost._transport is not None:
            lost._transport.close()  # type: ignore[no-untyped-call]
        assert [chunk["type"] for chunk in chunks] == ["status", "status", "result"]
        assert len(keys) == 2
        assert keys[0] == keys[1] != ""
        await peer.close()
        await server.kill()


class TestFirstVersion:
    async def test_the_flat_verbs_print_json(self, node: RunningNode) -> None:
        async def flat(*words: str) -> tuple[int, Any]:
            process = await asyncio.create_subprocess_exec(
                *(str(BIN / "aetherscale-cli"), *words), stdout=PIPE, stderr=PIPE, env=node.environment
            )
            out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
            assert process.returncode is not None
            return process.returncode, json.loads(out) if out else err.decode()

        status, made = await flat("create-vm", "--image", "blank", "--no-public-ip")
        assert (status, made["vm"]["phase"]) == (0, "ready")
        assert await flat("list-vms") == (0, await node.vms())
        assert (await flat("stop-vm", "--vm-id", made["vm-id"], "--kill"))[1]["vm"]["phase"] == "stopped"
        assert (await flat("start-vm", "--vm-id", made["vm-id"]))[1]["vm"]["phase"] == "ready"
        assert (await flat("delete-vm", "--vm-id", made["vm-id"]))[1]["vm"]["phase"] == "deleted"
        assert (await flat("stop-vm", "--vm-id", "nosuch"))[0] == 3
        status, said = await flat("create-vm", "--image", "blank", "--vpn", "v")
        assert (status, "does not work in this version" in said) == (1, True)

        both = await asyncio.gather(*(flat("create-vm", "--image", "blank", "--network", "lab") for _ in range(2)))
        assert [(status, made["vm"]["ports"][0]["network"]) for status, made in both] == [(0, "lab"), (0, "lab")]
        _, networks, _ = await node.cli("network", "list", "--json")
        assert [each["name"] for each in json.loads(networks)] == ["lab"]
        status, said = await flat("create-vm", "--image", "blank", "--network", "No")
        assert (status, "--network: got 'No'" in said) == (2, True)


class TestOnATerminal:
    @pytest.fixture
    async def terminal(self) -> AsyncIterator[Terminal]:
        made = Terminal()
        yield made
        await made.close()

    async def test_a_table_of_events_leaves_reservations_out_and_says_so(
        self, node: RunningNode, terminal: Terminal
    ) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        events = await told(node, "events", "list")
        claims = [each for each in events if each["stream"].startswith("claim-")]
        command = (sys.executable, "-m", "aetherscale", "events", "list")
        await terminal.start(*command, env=node.environment)
        assert await terminal.end() == 0
        assert "claim-" not in terminal.shown
        assert "VmBooted" in terminal.shown
        assert "vm-id=" not in terminal.shown, "the stream says it"
        assert f"{len(claims)} reservations left out; --all shows them" in terminal.said
        for asked_for in (("--all",), ("--type", "NameClaimed"), ("--wide",)):
            await terminal.start(*command, *asked_for, env=node.environment)
            assert await terminal.end() == 0
            assert ("claim-" in terminal.shown, "left out" in terminal.said) == (True, False), asked_for

    async def test_one_line_rewrites_itself_with_phase_and_seconds(self, node: RunningNode, terminal: Terminal) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        command = (sys.executable, "-m", "aetherscale", "vm", "wait", "web", "--for", "stopped")
        await terminal.start(*command, env=node.environment)
        # Which seconds are shown depends on how busy the host is: with the answer, or between two looks, one may pass.
        await terminal.until_true(lambda shown: len(set(seconds(shown, "ready"))) >= 3)
        assert seconds(terminal.shown, "ready") == sorted(seconds(terminal.shown, "ready"))
        assert "\n" not in terminal.shown, "it is one line"
        await good(node, "vm", "stop", "web")
        assert await terminal.end() == 0
        assert terminal.shown.rstrip().endswith(" is stopped")

    async def test_a_table_shows_phases_and_no_control_characters(self, node: RunningNode, terminal: Terminal) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        await terminal.start(sys.executable, "-m", "aetherscale", "vm", "list", env=node.environment)
        assert await terminal.end() == 0
        assert "\x1b[1mNAME" in terminal.shown
        assert "\x1b[32mready" in terminal.shown

    async def test_a_console_answers_what_the_guest_asks_now_and_not_what_it_asked_once(
        self, node: RunningNode, terminal: Terminal
    ) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        console = (sys.executable, "-m", "aetherscale", "vm", "console", "web")
        await terminal.start(*console, env=node.environment)
        await terminal.until("ctrl-] leaves", "sim:~#")  # what comes from the guest comes when the terminal is raw
        terminal.type("\x1b[6n\x1b]11;?\x07as''ked\n")
        await terminal.until("\x1b[6n", "\x1b]11;?\x07", "sim:~#")
        terminal.type("\x1d")
        assert await terminal.end() == 0
        short = (await node.vm("web"))["id"][:8]
        await terminal.start(*console[:-1], short, env=node.environment)
        await terminal.until("as''ked", "sim:~#")
        assert "\x1b" not in terminal.shown
        terminal.type("\x1b[6n")
        await terminal.until("\x1b[6n")
        terminal.type("\x1d")
        assert await terminal.end() == 0
        # A pipe may end at a terminal.
        status, out, _ = await node.cli("vm", "console", "web", stdin="\necho pi''ped\n")
        assert (status, "\x1b" in out, "piped\r\n" in out) == (0, False, True)
        assert "\x1b[6n" in await good(node, "vm", "logs", "web")
        await terminal.start(sys.executable, "-m", "aetherscale", "vm", "logs", "web", env=node.environment)
        assert await terminal.end() == 0
        assert "\x1b" not in terminal.shown

    async def test_on_a_terminal_one_event_and_why_show_local_time_with_its_offset(
        self, node: RunningNode, terminal: Terminal
    ) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        here = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} \+05:30")
        environment = {**node.environment, "TZ": "XST-5:30"}
        for words in (("events", "show", "1"), ("why", "vm", "web")):
            await terminal.start(sys.executable, "-m", "aetherscale", *words, env=environment)
            assert await terminal.end() == 0
            first, _, _ = terminal.shown.partition("\r\n\r\n")
            assert here.search(" ".join(first.split())), terminal.shown
            assert "Z" not in here.sub("", terminal.shown)
        assert (await told(node, "events", "show", "1"))["time"] in await good(node, "events", "show", "1")

    async def test_a_reader_that_has_enough_is_no_error(self, node: RunningNode) -> None:
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-c", f"set -o pipefail; '{BIN}/aetherscale' events catalogue | head -n 1"],
            env=node.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_list_imports_nothing_that_takes_long() -> None:
    # Where only aetherscale is installed there is no typing_extensions, with which msgspec would import more.
    code = (
        "import sys; sys.modules['typing_extensions'] = None; from aetherscale.__main__ import main\n"
        "sys.argv = ['aetherscale', 'vm', 'list', '--state-dir', '/x']; main(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    slow = {
        *("aiosqlite", "argparse", "ast", "asyncio", "dataclasses", "difflib", "dis", "encodings.idna", "hashlib"),
        *(
            "inspect",
            "json",
            "logging",
            "nats",
            "random",
            "rich",
            "sqlite3",
            "ssl",
            "subprocess",
            "tempfile",
            "tomllib",
        ),
    }
    assert slow.isdisjoint(done.stdout.split())
