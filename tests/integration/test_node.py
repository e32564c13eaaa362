"""One node, as a stranger meets it: a plain NATS client, real guests, and SIGKILL at the worst moments."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from typing import Any

import pytest
from nats.js.api import ConsumerConfig, DeliverPolicy

from aetherscale.components import COMPONENTS
from tests.integration.conftest import MakeNode
from tests.support.nats_server import taken_port
from tests.support.node import PATIENCE_S, RunningNode, guests
from tests.support.processes import nats_server_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CMD = "aether.v1.default.cmd"
SMALL = {"image": "tiny", "memory-mib": 128}


async def create(node: RunningNode, name: str, **options: Any) -> dict[str, Any]:
    body = {**SMALL, "name": name, **{key.replace("_", "-"): value for key, value in options.items()}}
    chunks = await node.request(f"{CMD}.compute.create-vm", body)
    assert chunks[-1]["type"] == "result", chunks[-1]
    view: dict[str, Any] = chunks[-1]["vm"]
    return view


async def stream_of(node: RunningNode) -> list[dict[str, Any]]:
    """Every event of the JetStream copy, by an ordered consumer from 1, with its sequence."""
    client = await node.client()
    js = client.jetstream()
    last = (await js.stream_info(f"AETHER_EVT_{node.name}")).state.last_seq
    subscription = await js.subscribe(
        f"aether.v1.*.evt.{node.name}.>",
        ordered_consumer=True,
        config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL),
    )
    found: list[dict[str, Any]] = []
    while len(found) < last:
        message = await subscription.next_msg(PATIENCE_S)
        body = json.loads(message.data)
        assert message.metadata.sequence.stream == len(found) + 1
        found.append(body)
    await subscription.unsubscribe()
    return found


async def log_of(node: RunningNode) -> list[dict[str, Any]]:
    """Every event, from the log alone."""
    status, out, err = await node.cli("events", "list", "--json")
    assert status == 0, err
    events: list[dict[str, Any]] = json.loads(out)
    return events


async def until_published(node: RunningNode) -> list[dict[str, Any]]:
    """The log, once all of it is in the stream."""
    client = await node.client()
    js = client.jetstream()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            log = await log_of(node)
            if (await js.stream_info(f"AETHER_EVT_{node.name}")).state.last_seq == len(log):
                return log


class TestForeignClients:
    async def test_the_first_versions_message_is_answered_on_its_channel(self, node: RunningNode) -> None:
        client = await node.client()
        channel = await client.subscribe("aether.v1.default.rsp.unique-channel-123456789")
        message = {
            "component": "computing",
            "task": "create-vm",
            "response-channel": "unique-channel-123456789",
            "options": SMALL,
        }
        await client.publish("aether.v1.default.rpc", json.dumps(message).encode())
        chunks = []
        while True:
            reply = await channel.next_msg(PATIENCE_S)
            if not reply.data:
                break
            chunks.append(json.loads(reply.data))
        words = [chunk["status"] for chunk in chunks if chunk["type"] == "status"]
        assert words.index("allocating") < words.index("starting")
        assert chunks[-1]["type"] == "result"
        assert chunks[-1]["vm"]["phase"] == "ready"

    async def test_a_request_streams_its_answer_and_ends_with_the_empty_message(self, node: RunningNode) -> None:
        chunks = await node.request(f"{CMD}.compute.create-vm", {**SMALL, "name": "web"})
        assert [chunk.get("status") for chunk in chunks[:2]] == ["allocating", "starting"]
        assert chunks[-1]["type"] == "result"
        assert chunks[-1]["vm-id"] == chunks[-1]["vm"]["id"] == chunks[0]["vm-id"]
        by_id = await node.request(f"aether.v1.default.obj.vm.{chunks[-1]['vm-id']}.vm-info", {})
        assert by_id[-1]["vm"]["name"] == "web"

    async def test_the_stream_is_the_log(self, node: RunningNode) -> None:
        await create(node, "web")
        log = await until_published(node)
        stream = await stream_of(node)
        assert len(stream) == len(log)
        for body, event in zip(stream, log, strict=True):
            assert body["type"] == f"io.aetherscale.{event['type']}"
            assert body["data"] == event["data"]
            assert body["time"] == event["time"]
            assert int(body["sequence"]) == event["seq"]

    async def test_services_are_discovered(self, node: RunningNode) -> None:
        client = await node.client()
        inbox = client.new_inbox()
        replies = await client.subscribe(inbox)
        await client.publish("$SRV.PING", b"", reply=inbox)
        names = {json.loads((await replies.next_msg(PATIENCE_S)).data)["name"] for _ in COMPONENTS}
        assert names == {f"aether-{each}" for each in COMPONENTS}


class TestOrder:
    async def test_stop_and_start_at_once_end_running(self, node: RunningNode) -> None:
        vm = await create(node, "web")
        stop, start = await asyncio.gather(
            node.task("compute", "stop-vm", vm_id=vm["id"]), node.task("compute", "start-vm", vm_id=vm["id"])
        )
        assert stop["type"] == "result"
        assert start["vm"]["phase"] == "ready"
        assert len(guests(node.state_dir)) == 1

    async def test_ten_creates_at_once_are_ten_vms(self, node: RunningNode) -> None:
        answers = await asyncio.gather(*(node.request(f"{CMD}.compute.create-vm", SMALL) for _ in range(10)))
        assert [chunks[-1]["type"] for chunks in answers] == ["result"] * 10, [chunks[-1] for chunks in answers]
        assert len({chunks[-1]["vm-id"] for chunks in answers}) == 10
        assert len(guests(node.state_dir)) == 10

    async def test_the_same_key_is_one_vm_and_one_answer_also_after_a_restart(self, node: RunningNode) -> None:
        body = {**SMALL, "name": "web"}
        first, second = await asyncio.gather(
            node.request(f"{CMD}.compute.create-vm", body, Nats_Msg_Id="key-1"),
            node.request(f"{CMD}.compute.create-vm", body, Nats_Msg_Id="key-1"),
        )
        await node.kill()
        await node.start()
        third = await node.request(f"{CMD}.compute.create-vm", body, Nats_Msg_Id="key-1")
        assert first[-1] == second[-1] == third[-1]
        assert len(await node.vms()) == 1
        other = await node.request(f"{CMD}.compute.create-vm", {**body, "name": "db"}, Nats_Msg_Id="key-1")
        assert other[-1]["code"] == 409


class TestKills:
    async def test_guests_outlive_the_node_and_answer_to_the_next_one(self, node: RunningNode) -> None:
        await create(node, "web")
        await create(node, "db")
        before, running = await node.vms(), guests(node.state_dir)
        await node.kill()
        assert guests(node.state_dir) == running
        await node.start()
        after = await node.vms()
        assert guests(node.state_dir) == running
        ignored = {"revision"}
        assert [{k: v for k, v in vm.items() if k not in ignored} for vm in after] == [
            {k: v for k, v in vm.items() if k not in ignored} for vm in before
        ]
        stopped = await node.task("compute", "stop-vm", vm_id="web")
        assert stopped["vm"]["phase"] == "stopped"
        assert stopped["vm"]["exit"]["reason"] == "user"
        assert list(guests(node.state_dir).values()) == [after[0]["id"]]

    async def test_a_node_that_dies_in_the_middle_of_a_create_finishes_it(self, node: RunningNode) -> None:
        async for chunk in node.stream(f"{CMD}.compute.create-vm", {**SMALL, "name": "web"}, Nats_Msg_Id="k"):
            if chunk.get("status") == "allocating":
                break
        await node.kill()
        await node.start()
        chunks = await node.request(f"{CMD}.compute.create-vm", {**SMALL, "name": "web"}, Nats_Msg_Id="k")
        assert chunks[-1]["vm"]["phase"] == "ready"
        assert len(guests(node.state_dir)) == 1

    async def test_a_guest_that_dies_while_the_node_is_away_is_not_called_running(self, node: RunningNode) -> None:
        await create(node, "web", restart="never")
        await node.kill()
        (pid,) = guests(node.state_dir)
        os.kill(pid, signal.SIGKILL)
        await node.start()
        view = await node.until_vm("web", phase="failed")
        assert view["observed"] == "exited"
        assert "unknown" in view["failure"]["reason"]

    async def test_a_killed_qemu_is_a_failure_with_its_signal(self, node: RunningNode) -> None:
        await create(node, "web", restart="never")
        (pid,) = guests(node.state_dir)
        os.kill(pid, signal.SIGKILL)
        view = await node.until_vm("web", phase="failed")
        assert view["exit"] == {"reason": "crash", "exit-code": None, "signal": 9, "detail": view["exit"]["detail"]}

    async def test_a_killed_qemu_is_started_again_as_its_policy_says(self, node: RunningNode) -> None:
        await create(node, "web", restart="on-failure")
        (pid,) = guests(node.state_dir)
        os.kill(pid, signal.SIGKILL)
        view = await node.until_vm("web", phase="ready", restarts=1)
        assert view["observed"] == "running"
        assert pid not in guests(node.state_dir)
        types = [event["type"] for event in await log_of(node)]
        assert types.index("VmExited") < types.index("VmRestartScheduled")

    async def test_a_killed_nats_server_is_replaced_and_no_event_is_lost_or_doubled(self, node: RunningNode) -> None:
        await create(node, "web")
        server = nats_server_of(node)
        assert server is not None
        os.kill(server, signal.SIGKILL)
        await (await node.client()).close()
        chunks = await node.insist(f"{CMD}.compute.stop-vm", {"vm-id": "web"}, "stop-1")
        assert chunks[-1]["vm"]["phase"] == "stopped"
        assert nats_server_of(node) != server
        log = await until_published(node)
        stream = await stream_of(node)
        assert [int(body["sequence"]) for body in stream] == [event["seq"] for event in log]

    async def test_a_stream_that_is_deleted_by_hand_is_published_again(self, node: RunningNode) -> None:
        await create(node, "web")
        log = await until_published(node)
        client = await node.client()
        js = client.jetstream()
        await js.delete_stream(f"AETHER_EVT_{node.name}")
        await node.task("compute", "stop-vm", vm_id="web", kill=True)
        async with asyncio.timeout(PATIENCE_S):
            names: list[str] = []
            while f"AETHER_EVT_{node.name}" not in names:
                names = [stream.config.name or "" for stream in await js.streams_info()]
        log = await until_published(node)
        assert [int(body["sequence"]) for body in await stream_of(node)] == [event["seq"] for event in log]


class TestTheLog:
    async def test_a_replay_gives_what_the_node_lists(self, node: RunningNode) -> None:
        await create(node, "web", labels={"tier": "front"})
        await create(node, "db", restart="never")
        await node.task("compute", "stop-vm", vm_id="db")
        status, listed, err = await node.cli("vm", "list", "--json")
        assert status == 0, err
        status, replayed, err = await node.cli("replay", "vm", "--json")
        assert status == 0, err
        assert json.loads(replayed) == json.loads(listed) == await node.vms()
        await node.stop()
        status, replayed, err = await node.cli("replay", "vm", "--json")
        assert json.loads(replayed) == json.loads(listed)
        status, out, err = await node.cli("log", "verify")
        assert status == 0, out + err

    async def test_a_copied_log_replays_without_anything_else(self, node: RunningNode, make_node: MakeNode) -> None:
        await create(node, "web")
        listed = await node.vms()
        await node.stop()
        elsewhere = make_node(directory="elsewhere")
        elsewhere.state_dir.mkdir()
        for name in ("events.db", "events.head"):
            shutil.copy(node.state_dir / name, elsewhere.state_dir)
        status, replayed, err = await elsewhere.cli("replay", "vm", "--json")
        assert status == 0, err
        assert json.loads(replayed) == listed

    async def test_a_damaged_log_is_neither_written_to_nor_believed(self, make_node: MakeNode) -> None:
        node = make_node("--simulated")
        await node.start()
        await node.task("images", "build-image", recipe="tiny")
        await create(node, "web")
        await node.stop()
        path = node.state_dir / "events.db"
        raw = bytearray(path.read_bytes())
        # A name in a payload: SQLite itself sees nothing wrong with another letter.
        raw[raw.index(b"\xa4tiny") + 1] ^= 1
        path.write_bytes(raw)
        for words in (("serve", "--simulated"), ("replay",), ("why", "vm", "web"), ("doctor",)):
            status, out, err = await node.cli(*words)
            assert status == 1, words
            assert "damaged" in out + err, words
        assert path.read_bytes() == raw


class TestErrors:
    async def test_what_later_components_bring_is_refused_as_such(self, node: RunningNode) -> None:
        chunks = await node.request(f"{CMD}.compute.create-vm", {**SMALL, "vpn": "v"})
        assert (chunks[-1]["code"], chunks[-1]["error"]) == (501, "not-implemented")
        assert chunks[-1]["details"]["field"] == "vpn"

    async def test_an_absent_image_is_refused_before_anything_happens(self, node: RunningNode) -> None:
        before = len(await log_of(node))
        answer = await node.task("compute", "create-vm", image="absent")
        assert answer["code"] == 404
        assert len(await log_of(node)) == before
        assert not list((node.state_dir / "vms").glob("*"))

    async def test_a_damaged_image_undoes_the_create_and_says_so(self, node: RunningNode) -> None:
        (image,) = (node.state_dir / "images").glob("*.raw")
        image.chmod(0o600)
        os.truncate(image, 1 << 20)
        answer = await node.task("compute", "create-vm", image="tiny", name="web", memory_mib=128)
        assert answer["type"] == "error"
        assert "is damaged" in answer["message"]
        assert answer["details"]["phase"] == "provisioning"
        assert await node.vms() == []
        assert not list((node.state_dir / "vms").glob("*"))

    async def test_too_much_memory_is_refused_before_anything_is_made(self, node: RunningNode) -> None:
        before = len(await stream_of(node))
        answer = await node.task("compute", "create-vm", image="tiny", name="huge", memory_mib=16 * 1024 * 1024)
        assert (answer["code"], answer["details"]["field"], answer["retryable"]) == (400, "memory-mib", False), answer
        assert answer["message"].startswith("got 16777216, expected at most ")
        assert len(await stream_of(node)) == before

    async def test_a_start_that_fails_undoes_the_create(self, node: RunningNode) -> None:
        with taken_port() as port:
            answer = await node.task("compute", "create-vm", image="tiny", name="web", publish=[f"{port}:80"])
        assert answer["type"] == "error"
        assert f"the port {port}/tcp of the host is taken by another program" in answer["message"]
        assert answer["details"]["phase"] == "booting"
        assert await node.vms() == []
        assert not list((node.state_dir / "vms").glob("*"))
        assert (await create(node, "web"))["phase"] == "ready"

    async def test_second_actions_are_no_actions(self, node: RunningNode) -> None:
        await create(node, "web")
        again = await node.task("compute", "start-vm", vm_id="web")
        assert again["vm"]["phase"] == "ready"
        for _ in range(2):
            assert (await node.task("compute", "stop-vm", vm_id="web"))["vm"]["phase"] == "stopped"
        assert (await node.task("compute", "delete-vm", vm_id="web"))["vm"]["phase"] == "deleted"
        assert (await node.task("compute", "delete-vm", vm_id="web"))["code"] == 404
        assert guests(node.state_dir) == {}
        assert not list((node.state_dir / "vms").glob("*"))
