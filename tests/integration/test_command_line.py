"""The command line as users and scripts have it: real programs against a real node, whose guests are simulated."""

from __future__ import annotations

import asyncio
import json
import os
import signal
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
from tests.support.nats_server import NatsServer
from tests.support.node import PATIENCE_S, ROOT, RunningNode
from tests.support.terminal import Terminal

pytestmark = pytest.mark.integration

BIN = Path(sys.executable).parent


@pytest.fixture
async def node(make_node: MakeNode, tmp_path: Path) -> RunningNode:
    """A node with simulated guests and an image for them."""
    running = make_node("--simulated")
    await running.start()
    image = tmp_path / "blank.img"
    image.write_bytes(bytes(510) + b"\x55\xaa" + bytes((1 << 20) - 512))
    await good(running, "image", "import", str(image), "--name", "blank", "--ready", "channel")
    return running


async def good(node: RunningNode, *words: str) -> str:
    """What a command that has to succeed writes to stdout."""
    status, out, err = await node.cli(*words)
    assert status == 0, err
    return out


async def told(node: RunningNode, *words: str) -> Any:
    """What a command that has to succeed says as JSON."""
    return json.loads(await good(node, *words, "--json"))


async def run(*words: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """A command without any node."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aetherscale", *words), stdout=PIPE, stderr=PIPE, env=env, cwd=ROOT
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def files_of_the_log(node: RunningNode) -> dict[str, bytes]:
    """What they have in them; without those through which SQLite's readers and writers find one another."""
    found = node.state_dir.glob("events.*")
    return {path.name: path.read_bytes() for path in found if not path.name.endswith(("-shm", "-wal"))}


class TestVms:
    async def test_the_life_of_a_vm(self, node: RunningNode) -> None:
        made = await told(
            node, "vm", "create", "web", "--image", "blank", "--cpus", "2", "--memory", "1G", "--label", "a=b"
        )
        assert (made["name"], made["phase"], made["cpus"], made["memory-mib"]) == ("web", "ready", 2, 1024)
        assert made["labels"] == {"a": "b"}
        assert await told(node, "vm", "show", "web") == made == await node.vm("web")
        assert (await told(node, "vm", "stop", "web"))["phase"] == "stopped"
        assert (await told(node, "vm", "start", made["id"]))["phase"] == "ready"
        assert (await told(node, "vm", "restart", "web"))["phase"] == "ready"
        assert (await told(node, "vm", "delete", "web", "--kill"))["phase"] == "deleted"
        assert await told(node, "vm", "list") == []
        assert [vm["phase"] for vm in await told(node, "vm", "list", "--all")] == ["deleted"]

    @pytest.mark.parametrize(
        ("flag", "field"), [("--cpus 0", "cpus"), ("--memory 0M", "memory"), ("--disk 0G", "disk")]
    )
    async def test_nothing_of_something_is_refused_and_not_taken_for_left_out(
        self, node: RunningNode, flag: str, field: str
    ) -> None:
        status, out, err = await node.cli("vm", "create", "web", "--image", "blank", *flag.split())
        assert (status, out) == (2, ""), err
        assert field in err
        assert await told(node, "vm", "list", "--all") == []

    async def test_a_list_is_sorted_and_can_be_narrowed(self, node: RunningNode) -> None:
        for name, label in (("b", "x=1"), ("a", "x=2"), ("c", "x=1")):
            await good(node, "vm", "create", name, "--image", "blank", "--label", label)
        assert await told(node, "vm", "list") == await node.vms()
        assert [vm["name"] for vm in await told(node, "vm", "list")] == ["a", "b", "c"]
        assert [vm["name"] for vm in await told(node, "vm", "list", "--label", "x=1")] == ["b", "c"]
        assert await told(node, "vm", "list", "--node", "host1") == await told(node, "vm", "list")
        lines = (await good(node, "vm", "list")).splitlines()
        assert lines[0].split()[:3] == ["NAME", "PHASE", "IMAGE"]
        assert [line.split()[:2] for line in lines[1:]] == [["a", "ready"], ["b", "ready"], ["c", "ready"]]

    async def test_without_waiting_the_answer_comes_when_the_request_is_durable(self, node: RunningNode) -> None:
        made = await told(node, "vm", "create", "web", "--image", "blank", "--no-wait")
        assert made["name"] == "web"
        assert (await told(node, "vm", "wait", "web"))["phase"] == "ready"
        assert (await told(node, "vm", "stop", "web", "--no-wait"))["requested"] == "stopped"
        assert (await told(node, "vm", "wait", "web", "--for", "stopped"))["phase"] == "stopped"

    async def test_waiting_for_what_cannot_come_ends_at_once(self, node: RunningNode) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        await good(node, "vm", "stop", "web")
        status, _, err = await node.cli("vm", "wait", "web")
        assert status == 1
        assert "is stopped, and nobody has asked to start it" in err

    async def test_a_wait_that_runs_out_is_told_as_such(self, node: RunningNode) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        status, out, err = await node.cli("vm", "wait", "web", "--for", "stopped", "--timeout", "0.2", "--json")
        assert (status, out) == (5, "")
        assert json.loads(err)["details"]["phase"] == "ready"

    async def test_waiting_ends_with_what_somebody_else_does(self, node: RunningNode) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        waiting = asyncio.ensure_future(node.cli("vm", "wait", "web", "--for", "deleted", "--json"))
        client = await node.client()
        heard = await client.subscribe("aether.v1.default.cmd.compute.vm-info")
        await heard.next_msg(PATIENCE_S)
        await good(node, "vm", "delete", "web")
        status, out, _ = await waiting
        assert status == 0
        assert json.loads(out)["phase"] == "deleted"

    async def test_a_program_in_the_guest_gives_its_output_and_its_status(self, node: RunningNode) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        assert (await good(node, "vm", "exec", "web", "--", "echo", "hi")) == "hi\n"
        status, _, err = await node.cli("vm", "exec", "web", "--", "nosuch")
        assert (status, err.startswith("error: ")) == (2, True)

    async def test_the_serial_log_can_be_read(self, node: RunningNode) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        whole = await good(node, "vm", "logs", "web")
        assert whole
        assert await good(node, "vm", "logs", "web", "--tail", "5") == whole[-5:]
        lines = (await good(node, "vm", "logs", "web", "--json")).splitlines()
        assert "".join(json.loads(line)["text"] for line in lines) == whole


REFUSALS = [
    ("vm show wbe", 3, "no such VM: 'wbe'", "did you mean: web?"),
    ("vm stop wbe", 3, "no such VM: 'wbe'", "did you mean: web?"),
    ("vm logs wbe", 3, "no such VM: 'wbe'", "did you mean: web?"),
    ("vm exec wbe -- ls", 3, "no such VM: 'wbe'", "did you mean: web?"),
    ("vm console wbe", 3, "no such VM: 'wbe'", "did you mean: web?"),
    ("vm wait xyzzy", 3, "no such VM: 'xyzzy'", "aetherscale vm list"),
    ("vm create db --image blnak", 3, "no such image: 'blnak'", "did you mean: blank?"),
    ("image show blnak", 3, "no such image: 'blnak'", "did you mean: blank?"),
    ("vm create web --image blank", 1, "a VM named 'web' exists already", "aetherscale vm delete web"),
    ("image delete blank", 1, "is in use by 1 VM(s): web", "aetherscale vm delete web"),
    ("vm create Web --image blank", 2, "field 'name'", ""),
    ("vm create db --image blank --cpus 1000", 2, "field 'cpus'", ""),
    ("vm create db --image blank --network lab", 1, "'virtual-network' does not work in this version", "leave"),
    ("vm create db --image blank --vpn v", 1, "'vpn' does not work in this version", "leave"),
    ("vm create db --image blank --public-ip", 1, "'public-ip' does not work in this version", "leave"),
    ("vm create db --image blank --init-script README.md", 1, "'init-script' does not work", "leave"),
    ("vm create db --image blank --ssh-key README.md", 1, "'ssh-keys' does not work", "leave"),
    ("vm create db --image blank --group g", 1, "'groups' does not work", "leave"),
    ("vm create db --image blank --init-script /nosuch", 2, "/nosuch cannot be read", ""),
    ("vm create db --image blank --node other", 4, "node 'other' does not answer", ""),
    ("image import ftp://host/x", 2, "expected a file, or an http or https URL", ""),
    ("network create lab", 1, "aetherscale network: not in this version", "user-mode networking"),
    ("vpn list", 1, "not in this version", ""),
    ("firewall group list", 1, "not in this version", ""),
    ("host setup", 1, "not in this version", "aetherscale doctor"),
    ("serve --http 127.0.0.1:80", 1, "not in this version", ""),
    ("why vm wbe", 3, "the log knows no vm 'wbe'", "did you mean: web?"),
    ("events list --vm wbe", 3, "the log knows no vm 'wbe'", "did you mean: web?"),
    ("events list --type VmBoted", 2, "there is no event type 'VmBoted'", "did you mean: VmBooted?"),
    ("events show 100000", 3, "there is no event 100000", ""),
    ("replay --at 100000", 2, "the log ends at event", ""),
    ("diff yesterday", 2, "expected the number of an event or a time", ""),
    ("replay network", 1, "not in this version", ""),
]


class TestRefusals:
    async def test_every_refusal_has_its_status_and_says_what_to_do(
        self, node: RunningNode, subtests: pytest.Subtests
    ) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        before = len(await told(node, "events", "list"))
        for words, status, said, hint in REFUSALS:
            with subtests.test(words):
                got, out, err = await node.cli("--json", *words.split())
                error = json.loads(err)
                assert (got, out) == (status, "")
                assert said in error["message"]
                assert hint in error["details"].get("hint", "")
        assert len(await told(node, "events", "list")) == before, "a refusal is no event"

    async def test_a_human_reads_the_same_refusal(self, node: RunningNode) -> None:
        status, out, err = await node.cli("vm", "show", "wbe")
        assert (status, out, err) == (3, "", "error: no such VM: 'wbe'\nhint: aetherscale vm list\n")

    async def test_an_image_that_cannot_come_in_is_told_with_the_phase_and_where_to_look(
        self, node: RunningNode
    ) -> None:
        status, _, err = await node.cli("image", "import", "/nosuch/file.img", "--name", "gone")
        assert status == 1
        assert "gone: importing (" in err
        assert "error: the image was rejected: importing: " in err
        assert "hint: " in err


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


class TestLostConnections:
    async def test_a_command_is_sent_again_under_its_key(self, tmp_path: Path) -> None:
        server = NatsServer(tmp_path / "store")
        await server.start()
        write_endpoint(tmp_path, server.endpoint)
        keys: list[str] = []
        accepted = asyncio.Event()

        async def answer(message: Msg) -> None:
            assert message.headers is not None
            keys.append(message.headers["Nats-Msg-Id"])
            client = message._client
            await client.publish(message.reply, b'{"type":"status","status":"allocating","vm-id":"1"}')
            if len(keys) == 2:
                await client.publish(message.reply, b'{"type":"result","vm-id":"1","vm":{"phase":"ready"}}')
            await client.flush()
            accepted.set()

        async def serve() -> Peer:
            peer = await nats.connect(server.endpoint.url, allow_reconnect=False)
            await peer.subscribe("aether.v1.default.cmd.compute.create-vm", cb=answer)
            await peer.flush()
            return peer

        def ask() -> list[dict[str, Any]]:
            with closing(Client(Settings(tmp_path, "host1"), program())) as client:
                return list(client.ask("compute", "create-vm", {}, timeout_s=PATIENCE_S, command=True))

        await serve()
        asking = asyncio.ensure_future(asyncio.to_thread(ask))
        await accepted.wait()
        await server.kill()
        await server.start()
        peer = await serve()
        chunks = await asking
        assert [chunk["type"] for chunk in chunks] == ["status", "status", "result"]
        assert len(keys) == 2
        assert keys[0] == keys[1] != ""
        await peer.close()
        await server.kill()


class TestTheLog:
    async def test_the_past_is_told_with_and_without_a_node(self, node: RunningNode) -> None:
        for name in ("web", "db"):
            await good(node, "vm", "create", name, "--image", "blank")
        await good(node, "vm", "delete", "db")
        live = await told(node, "vm", "list")
        images = await told(node, "image", "list")
        assert await told(node, "replay", "vm") == live
        assert await told(node, "replay") == {"vm": live, "image": images}
        before = (await told(node, "events", "list", "--vm", "db"))[0]["seq"] - 1
        shown = [await good(node, *words) for words in (("why", "vm", "db"), ("diff", str(before)), ("log", "verify"))]
        await node.stop()
        assert await told(node, "replay", "vm") == live
        assert [vm["name"] for vm in await told(node, "replay", "vm", "--at", str(before))] == ["web"]
        assert [vm["name"] for vm in await told(node, "replay", "vm", "--all")] == ["db", "web"]
        again = [await good(node, *words) for words in (("why", "vm", "db"), ("diff", str(before)), ("log", "verify"))]
        assert again == shown
        assert "user:nats asked to delete it" in shown[0]
        assert "+ vm db" in shown[1]

    async def test_reading_the_log_changes_nothing_in_it(self, node: RunningNode) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        await node.stop()
        before = files_of_the_log(node)
        assert "events.db" in before
        for words in ("replay", "why vm web", "diff 1", "events list", "log verify", "log info", "log export"):
            await good(node, *words.split())
        assert files_of_the_log(node) == before

    async def test_events_are_listed_narrowed_and_shown(self, node: RunningNode) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        events = await told(node, "events", "list")
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert await told(node, "events", "list", "--after", "2", "--limit", "3") == events[2:5]
        of_web = await told(node, "events", "list", "--vm", "web")
        assert {event["stream"].partition("-")[0] for event in of_web} == {"vm"}
        assert await told(node, "events", "list", "--vm", "web", "--type", "vm-booted", "--type", "VmReady") == [
            event for event in of_web if event["type"] in ("VmBooted", "VmReady")
        ]
        assert await told(node, "events", "show", "3") == events[2]
        assert len((await good(node, "events", "list")).splitlines()) == len(events) + 1

    async def test_a_tail_tells_events_as_they_come_until_it_is_interrupted(self, node: RunningNode) -> None:
        head = len(await told(node, "events", "list"))
        tail = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aetherscale", "events", "tail", "--after", str(head - 1), "--json"),
            stdout=PIPE,
            env=node.environment,
            cwd=ROOT,
        )
        assert tail.stdout is not None
        assert json.loads(await tail.stdout.readline())["seq"] == head
        await good(node, "vm", "create", "web", "--image", "blank")
        seen: list[dict[str, Any]] = []
        async with asyncio.timeout(PATIENCE_S):
            while not seen or seen[-1]["type"] != "VmReady":
                seen.append(json.loads(await tail.stdout.readline()))
        assert seen == (await told(node, "events", "list"))[head : head + len(seen)]
        tail.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(tail.wait(), PATIENCE_S) == 0

    async def test_a_log_moves_as_lines(self, node: RunningNode, tmp_path: Path) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        lines = tmp_path / "log.jsonl"
        await good(node, "log", "export", str(lines))
        assert (await good(node, "log", "export")) == lines.read_text()
        status, _, err = await node.cli("log", "export", str(lines))
        assert (status, "exists already" in err) == (2, True)
        other = str(tmp_path / "other")
        await good(node, "log", "import", str(lines), "--state-dir", other)
        assert await told(node, "replay", "--state-dir", other) == await told(node, "replay")
        status, _, err = await node.cli("log", "import", str(lines), "--state-dir", other)
        assert (status, "events already" in err) == (1, True)
        lines.write_text(lines.read_text()[:-40])
        status, _, err = await node.cli("log", "import", str(lines), "--state-dir", str(tmp_path / "third"))
        assert (status, "nothing was imported" in err) == (2, True)

    async def test_a_damaged_log_is_told_with_what_saves_it(self, node: RunningNode, tmp_path: Path) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        await node.stop()
        log = node.state_dir / "events.db"
        content = log.read_bytes()
        at = content.rindex(b"web")
        log.write_bytes(content[:at] + b"wex" + content[at + 3 :])
        status, out, err = await node.cli("log", "verify")
        assert (status, "problem: " in out, "aetherscale log export" in err) == (1, True, True)
        assert (await node.cli("log", "verify", "--json"))[0] == 1

    async def test_where_there_is_no_log_the_state_directory_is_asked_for(self, tmp_path: Path) -> None:
        for words in ("replay", "why vm web", "events list", "log verify", "log info", "log export"):
            status, _, err = await run(*words.split(), "--state-dir", str(tmp_path))
            assert status == 3, words
            assert "there is no event log" in err
            assert "--state-dir" in err


class TestTheHost:
    async def test_the_doctor_finds_what_is_missing_and_says_what_mends_it(self, tmp_path: Path) -> None:
        env = {**os.environ, "PATH": str(tmp_path), "AETHERSCALE_STATE_DIR": str(tmp_path / "state")}
        status, out, _ = await run("doctor", "--json", env=env)
        findings = {finding["check"]: finding for finding in json.loads(out)}
        assert status == 1
        assert findings["qemu"]["status"] == "error"
        assert findings["qemu"]["mend"] == "apt install qemu-system-x86"
        assert findings["jail"]["mend"] == "apt install util-linux"
        assert findings["python"]["status"] == "ok"
        assert not (tmp_path / "state").exists(), "it leaves nothing behind"

    async def test_the_doctor_is_content_beside_a_node_that_runs(self, node: RunningNode) -> None:
        status, out, _ = await node.cli("doctor")
        assert status == 0, out
        assert f"of node {node.name}; all as they were written" in out

    async def test_the_doctor_sees_that_the_node_has_another_name(self, node: RunningNode) -> None:
        env = {**node.environment, "AETHERSCALE_NODE": "other"}
        status, out, _ = await run("doctor", env=env)
        assert (status, "mend: serve with --node host1" in out) == (1, True)

    async def test_a_node_is_heard(self, node: RunningNode) -> None:
        (heard,) = await told(node, "node", "list")
        assert heard["node"] == node.name
        assert (await told(node, "node", "show", node.name))["epoch"] == heard["epoch"]

    async def test_the_nats_program_is_given_a_context(self, node: RunningNode, tmp_path: Path) -> None:
        env = {**node.environment, "XDG_CONFIG_HOME": str(tmp_path)}
        status, _, err = await run("nats-context", "--name", "mine", "--select", env=env)
        assert status == 0, err
        context = tmp_path / "nats/context/mine.json"
        assert context.read_bytes() == (node.state_dir / "nats.json").read_bytes()
        assert context.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "nats/context.txt").read_text() == "mine"

    async def test_bash_completes_words_and_names(self, node: RunningNode) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        for typed, offered in (
            ("vm sh", "show"),
            ("vm show w", "web"),
            ("vm create --restart n", "never"),
            ("vm create --image b", "blank"),
            ("vm stop web --k", "--kill"),
            ("--state-d", "--state-dir"),
        ):
            words = typed.split(" ")
            script = (
                f'source <("{BIN}/aetherscale" completion bash); COMP_WORDS=("{BIN}/aetherscale" {typed}); '
                f"COMP_CWORD={len(words)}; _aetherscale; printf '%s\\n' \"${{COMPREPLY[@]}}\""
            )
            done = await asyncio.to_thread(
                subprocess.run, ["bash", "-c", script], env=node.environment, capture_output=True, text=True, check=True
            )
            assert done.stdout.split() == [offered], typed


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


class TestOnATerminal:
    @pytest.fixture
    async def terminal(self) -> AsyncIterator[Terminal]:
        made = Terminal()
        yield made
        await made.close()

    async def test_one_line_rewrites_itself_with_phase_and_seconds(self, node: RunningNode, terminal: Terminal) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        command = (sys.executable, "-m", "aetherscale", "vm", "wait", "web", "--for", "stopped")
        await terminal.start(*command, env=node.environment)
        await terminal.until("web: ready  0 s", "web: ready  1 s", "web: ready  2 s")
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
    code = (
        "import sys; from aetherscale.__main__ import main\n"
        "sys.argv = ['aetherscale', 'vm', 'list', '--state-dir', '/x']; main(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    slow = {"aiosqlite", "argparse", "asyncio", "dataclasses", "encodings.idna", "hashlib", "logging", "nats", "rich"}
    assert slow.isdisjoint(done.stdout.split())
