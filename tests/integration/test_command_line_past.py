"""The log as the debugger, and this host, by the command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from aetherscale.bus.peers import name_of
from aetherscale.components import kinds
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.sqlite import open_store
from aetherscale.kernel.messages import Envelope
from aetherscale.kernel.registry import event_types
from aetherscale.kernel.reservations import NameClaimed, name_stream
from tests.integration.conftest import MakeNode
from tests.support.cli import BIN, good, run, simulated_node, told
from tests.support.node import PATIENCE_S, ROOT, RunningNode

pytestmark = pytest.mark.integration


@pytest.fixture
async def node(make_node: MakeNode, tmp_path: Path) -> RunningNode:
    """A node with simulated guests and an image for them."""
    return await simulated_node(make_node, tmp_path)


def files_of_the_log(node: RunningNode) -> dict[str, bytes]:
    """What they have in them; without those through which SQLite's readers and writers find one another."""
    found = node.state_dir.glob("events.*")
    return {path.name: path.read_bytes() for path in found if not path.name.endswith(("-shm", "-wal"))}


async def claim_names(node: RunningNode, count: int) -> None:
    """Make the log of a node that is not running longer."""
    store = await open_store(node.state_dir / "events.db", node=node.name, epoch="0", now_us=0)
    log = EventLog(store, Codec(event_types(kinds())))
    for number in range(count):
        name = f"name-{number}"
        claimed = Write(name_stream("vm", "default", name), 0, (NameClaimed("vm", name, f"{number:016x}"),))
        await log.append([claimed], Envelope(None, "default", "user:test", name, name, None, 1_800_000_000_000_000))
    await log.close()


class TestTheLog:
    async def test_the_past_is_told_with_and_without_a_node(self, node: RunningNode) -> None:
        for name in ("web", "db"):
            await good(node, "vm", "create", name, "--image", "blank")
        await good(node, "vm", "delete", "db")
        live = await told(node, "vm", "list")
        images = await told(node, "image", "list")
        assert await told(node, "replay", "vm") == live
        assert await told(node, "replay") == {"network": [], "group": [], "vm": live, "image": images}
        before = (await told(node, "events", "list", "--vm", "db"))[0]["seq"] - 1
        shown = [await good(node, *words) for words in (("why", "vm", "db"), ("diff", str(before)), ("log", "verify"))]
        await node.stop()
        assert await told(node, "replay", "vm") == live
        assert [vm["name"] for vm in await told(node, "replay", "vm", "--at", str(before))] == ["web"]
        assert [vm["name"] for vm in await told(node, "replay", "vm", "--all")] == ["db", "web"]
        again = [await good(node, *words) for words in (("why", "vm", "db"), ("diff", str(before)), ("log", "verify"))]
        assert again == shown
        assert f"unix:{name_of(os.geteuid())} asked to delete it" in shown[0]
        assert "± vm db" in shown[1]
        assert "created and deleted in between" in shown[1]
        assert "- vm db" in await good(node, "diff", str(before + 1))

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

    @pytest.mark.parametrize("words", ["events tail --after 0", "events tail --after 0 --json", "vm logs web -f"])
    async def test_what_follows_ends_when_its_reader_has_enough(self, node: RunningNode, words: str) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        follower = await asyncio.create_subprocess_exec(
            *("bash", "-c", f"set -o pipefail; '{sys.executable}' -m aetherscale {words} | head -n 1"),
            stdout=PIPE,
            stderr=PIPE,
            env=node.environment,
            cwd=ROOT,
        )
        out, err = await asyncio.wait_for(follower.communicate(), PATIENCE_S)
        assert (follower.returncode, out.count(b"\n"), err) == (0, 1, b"")

    async def test_of_a_moment_that_is_still_to_come_it_is_said_what_is_shown(self, node: RunningNode) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        seq = len(await told(node, "events", "list"))
        for words, instead in (
            ("replay --at", "the present is shown"),
            ("why vm web --at", "the present is shown"),
            ("diff 1", "the present is taken"),
            ("diff", "the present is taken"),
            ("events list --since", "no event is that late"),
            ("events list --until", "all events until now are shown"),
            ("vm logs web --since", "only what is written from then on is shown"),
        ):
            for moment in ("tomorrow", "2999-01-01"):
                for json_too in ((), ("--json",)):
                    status, _, err = await node.cli(*words.split(), moment, *json_too)
                    assert (status, err.count("note: ")) == (0, 1), (words, moment, err)
                    assert f"note: {moment} is in the future; {instead}" in err
            for moment in ("5m", "yesterday", str(seq)) if "logs" not in words else ("5m", "yesterday"):
                assert "future" not in (await node.cli(*words.split(), moment))[2]
        assert await told(node, "replay", "--at", "tomorrow") == await told(node, "replay")

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
        assert not (tmp_path / "third").exists()

    async def test_a_log_that_is_archived_says_the_same_and_takes_less(self, node: RunningNode) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        status, _, err = await node.cli("log", "archive")
        assert (status, "another process writes to this log: pid" in err) == (1, True)
        await node.stop()
        assert "stay as they are, since the newest 100000 are kept" in await good(node, "log", "archive")
        assert "could be sealed; a segment needs 1000" in await good(node, "log", "archive", "--keep", "1")
        assert "are before 3; a segment needs 1000" in await good(node, "log", "archive", "--before", "3")
        await claim_names(node, 1100)
        asked = ("replay --json", "why vm web", "diff 1 4", "events list", "log verify", "log export")
        before = [await good(node, *words.split()) for words in asked]
        assert "1000 events would go into 1 segment, up to event 1000; nothing was changed" in await good(
            node, "log", "archive", "--before", "1050", "--dry-run"
        )
        status, _, err = await node.cli("log", "archive", "--before", "noon")
        assert (status, "the number of an event or a time" in err) == (2, True)
        status, _, err = await node.cli("log", "archive", "--before", "9", "--keep", "9")
        assert (status, "give one of them" in err) == (2, True)
        done = await told(node, "log", "archive", "--keep", "50")
        assert (done["events"], done["sealed-to"], done["reclaimed"]) == (1000, 1000, True)
        assert done["after-bytes"] < done["before-bytes"]
        assert [await good(node, *words.split()) for words in asked] == before
        assert "sealed    up to event 1000, in 1 segment of" in await good(node, "log", "info")
        await node.start()
        await good(node, "vm", "stop", "web")
        assert (await told(node, "vm", "list"))[0]["phase"] == "stopped"

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
            assert "name the state directory of a node with --state-dir" in err
            assert f"start one: aetherscale serve --state-dir {tmp_path}" in err


class TestTheHost:
    async def test_the_doctor_finds_what_is_missing_and_says_what_mends_it(self, tmp_path: Path) -> None:
        env = {**os.environ, "PATH": str(tmp_path), "AETHERSCALE_STATE_DIR": str(tmp_path / "state")}
        status, out, _ = await run("doctor", "--json", env=env)
        findings = {finding["check"]: finding for finding in json.loads(out)}
        assert status == 1
        assert findings["qemu"]["status"] == "error"
        assert findings["qemu"]["mend"] == "apt-get install --no-install-recommends qemu-system-x86"
        assert findings["jail"]["mend"] == "apt-get install --no-install-recommends util-linux"
        assert findings["python"]["status"] == "ok"
        assert not (tmp_path / "state").exists(), "it leaves nothing behind"

    async def test_the_doctor_is_content_beside_a_node_that_runs(self, node: RunningNode) -> None:
        status, out, _ = await node.cli("doctor")
        assert status == 0, out
        assert f"of node {node.name}, all as they were written" in out

    async def test_the_doctor_sees_that_the_node_has_another_name(self, node: RunningNode) -> None:
        env = {**node.environment, "AETHERSCALE_NODE": "other"}
        status, out, _ = await run("doctor", env=env)
        assert (status, "fix: serve with --node host1" in out) == (1, True)

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
