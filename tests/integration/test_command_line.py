"""The words of virtual machines against a real node, and every refusal."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.integration.conftest import MakeNode
from tests.support.cli import good, simulated_node, told
from tests.support.node import PATIENCE_S, ROOT, RunningNode

pytestmark = pytest.mark.integration


@pytest.fixture
async def node(make_node: MakeNode, tmp_path: Path) -> RunningNode:
    """A node with simulated guests and an image for them."""
    return await simulated_node(make_node, tmp_path)


class TestVms:
    async def test_the_life_of_a_vm(self, node: RunningNode) -> None:
        made = await told(
            node, "vm", "create", "web", "--image", "blank", "--cpus", "2", "--memory", "1G", "--label", "a=b"
        )
        assert (made["name"], made["phase"], made["cpus"], made["memory-mib"]) == ("web", "ready", 2, 1024)
        assert made["labels"] == {"a": "b"}
        assert (await told(node, "vm", "show", "web")).items() >= made.items()
        assert made == await node.vm("web")
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
        assert "is stopped, and no start was requested" in err

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
        assert (status, err.startswith("error: ")) == (127, True)

    async def test_a_program_gets_what_is_piped_to_it(self, node: RunningNode) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        for words, given in ((("exec", "web", "cat"), b"x\n"), (("exec", "-i", "web", "--", "cat"), b"y" * 100_000)):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "aetherscale", "vm", *words),
                stdin=PIPE, stdout=PIPE, env=node.environment, cwd=ROOT,
            )  # fmt: skip
            out, _ = await asyncio.wait_for(process.communicate(given), PATIENCE_S)
            assert (process.returncode, out) == (0, given)

    async def test_the_last_lines_of_the_log_can_be_read(self, node: RunningNode) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        whole = await good(node, "vm", "logs", "web")
        assert await good(node, "vm", "logs", "web", "-n", "1") == whole.split("\n")[-1]
        assert await good(node, "vm", "logs", "web", "--lines", "0") == ""
        assert await good(node, "vm", "logs", "web", "-n", "1000") == whole

    async def test_the_log_since_a_moment_can_be_read(self, node: RunningNode) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        whole = await good(node, "vm", "logs", "web")
        for moment in ("1h", "yesterday", "2026-01-31", "2026-01-31T12:00:00Z", "3 days ago"):
            assert await good(node, "vm", "logs", "web", "--since", moment) == whole
        assert await good(node, "vm", "logs", "web", "--since", "tomorrow") == ""
        assert await good(node, "vm", "logs", "web", "--since", "1h", "-n", "1") == whole.split("\n")[-1]
        lines = (await good(node, "vm", "logs", "web", "--since", "1h", "--json")).splitlines()
        assert "".join(json.loads(line)["text"] for line in lines) == whole

    async def test_what_is_known_of_a_vm_has_its_place_and_its_process(self, node: RunningNode) -> None:
        await good(node, "vm", "create", "web", "--image", "blank")
        shown = await told(node, "vm", "show", "web")
        (listed,) = await told(node, "vm", "list")
        assert listed.items() <= shown.items()
        assert shown["disk"] == f"{shown['directory']}/disk.qcow2"
        assert shown["console-log"] == f"{shown['directory']}/console.log"
        assert (shown["pid"] > 0, shown["uptime-s"] >= 0) == (True, True)
        text = await good(node, "vm", "show", "web")
        assert ["pid", str(shown["pid"])] in [line.split() for line in text.splitlines()]
        await good(node, "vm", "stop", "web", "--kill")
        stopped = await told(node, "vm", "show", "web")
        assert {"pid", "uptime-s"}.isdisjoint(stopped)
        assert stopped["disk"] == shown["disk"]
        await good(node, "vm", "delete", "web")
        deleted = await told(node, "vm", "show", shown["id"])
        assert {"directory", "disk", "console-log"}.isdisjoint(deleted)

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
    (
        "vm exec -it web -- sh",
        2,
        "vm exec: -t and --json: got both, expected one of them",
        "leave out -t or --json",
    ),
    ("vm exec -t --timeout 5s web -- sh", 2, "vm exec: -t and --", "leave out -t or --"),
    ("vm exec -ix web -- sh", 2, "no such option: -ix", ""),
    ("vm logs web --since then", 2, "vm logs: --since: got 'then', expected a time like 16:00", ""),
    ("vm logs web --since 5m --tail 5", 2, "--since and --tail: got both, expected one of them", ""),
    ("vm logs web -n 5 --tail 5", 2, "got both, expected one of them", ""),
    ("vm logs web -n x", 2, "expected a whole number", ""),
    ("vm console web", 2, "--json is refused: a serial console sends bytes", "aetherscale vm logs web --follow --json"),
    ("vm wait xyzzy", 3, "no such VM: 'xyzzy'", "aetherscale vm list"),
    ("vm create db --image blnak", 3, "no such image: 'blnak'", "did you mean: blank?"),
    ("image show blnak", 3, "no such image: 'blnak'", "did you mean: blank?"),
    ("vm create web --image blank", 1, "a VM named 'web' exists already", "aetherscale vm delete web"),
    ("image delete blank", 1, "is in use by 1 VM(s): web", "aetherscale vm delete web"),
    ("vm create Web --image blank", 2, "field 'name'", ""),
    ("vm create db --image blank --cpus 1000", 2, "field 'cpus'", ""),
    ("vm create db --image blank --memory 9999G", 2, "got 10238976, expected at most 1048576 MiB of memory", ""),
    ("vm create db --image blank --network lab --network lab", 2, "the network 'lab' is named twice", "name it once"),
    ("vm create db --image blank --network lab", 3, "no such network: 'lab'", "aetherscale network create lab"),
    ("vm create db --image blank --network vde:lab", 2, "got 'vde:lab', expected an absolute path of the host", ""),
    ("vm create db --image blank --vpn v", 1, "'vpn' does not work in this version", "leave"),
    ("vm create db --image blank --address 192.0.2.7", 2, "addresses are chosen for the port", "leave"),
    (
        "vm create db --image blank --init-script README.md",
        2,
        "got a script whose first line does not name",
        "begin it with #!",
    ),
    ("vm create db --image blank --init-script justw", 1, "guests of the image 'blank' take no init script", "leave"),
    ("vm create db --image blank --wait-for init", 2, "there is no init script that could be waited for", "give one"),
    ("vm wait web --for init", 2, "the VM 'web' has no init script", ""),
    ("vm create db --image blank --ssh-key .ci/run", 2, "got what is no public key of SSH", "give the line of"),
    ("vm create db --image blank --ssh-key /dev/null", 2, "there is no key in /dev/null", "ssh-keygen -t ed25519"),
    ("vm ssh web --json", 2, "vm ssh: --json is refused", "aetherscale vm exec"),
    ("vm ssh web --user Root", 2, "got 'Root', expected the name of a user", ""),
    ("vm create db --image blank --group g", 2, "a VM without a network has no port that a group", "name a network"),
    ("vm create db --image blank --init-script /nosuch", 2, "/nosuch cannot be read", ""),
    ("vm create db --image blank --node other", 4, "node 'other' does not answer", "aetherscale node list"),
    ("node show other", 4, "no node 'other' answers", "aetherscale node list"),
    ("log witness heads.jsonl --of other", 4, "no node 'other' answers", "aetherscale node list"),
    ("vm show 3ad", 2, "got '3ad', expected a name, or at least 4 characters of an id", "give more of the id"),
    ("vm stop 3", 2, "got '3', expected a name, or at least 4 characters of an id", "give more of the id"),
    ("image show 3ad", 2, "got '3ad', expected a name, or at least 4 characters of an id", "give more of the id"),
    ("why vm 3ad", 2, "got '3ad', expected a name, or at least 4 characters of an id", "give more of the id"),
    ("vm show 3ad4", 3, "no VM has an id that begins with '3ad4'", "aetherscale vm list --all"),
    ("image show 3ad4", 3, "no image has an id that begins with '3ad4'", "aetherscale image list --all"),
    ("image import ftp://host/x", 2, "expected a file, or an http or https URL", ""),
    ("network delete lab", 3, "no such network: 'lab'", "aetherscale network list"),
    ("network create lab --ipv4 10.0.0.0/8", 2, "got '10.0.0.0/8', expected a prefix of /16 or longer", ""),
    ("network create lab --ipv6 none", 2, "got 'none', expected an IPv6 prefix", "leave it out"),
    ("network create lab --bridge br0", 2, "a network of the kind 'isolated' has a bridge of its own", "leave it out"),
    ("vpn list", 1, "not in this version", ""),
    ("serve --http 0.0.0.0:80", 1, "not in this version", "ssh -L"),
    ("serve --http nowhere", 2, "expected HOST:PORT like 127.0.0.1:8470", ""),
    ("why vm wbe", 3, "the log knows no vm 'wbe'", "did you mean: web?"),
    ("events list --vm wbe", 3, "the log knows no vm 'wbe'", "did you mean: web?"),
    ("events list --type VmBoted", 2, "there is no event type 'VmBoted'", "did you mean: VmBooted?"),
    ("events show 100000", 3, "there is no event 100000", ""),
    ("replay --at 100000", 2, "the log ends at event", ""),
    ("diff someday", 2, "expected the number of an event or a time", ""),
    ("why zzz web", 2, "KIND: got 'zzz', expected one of network, group, vm, image", ""),
    ("why vpn web", 1, "not in this version", "one of network, group, vm, image"),
    ("replay vpn", 1, "not in this version", ""),
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

    async def test_notes_name_the_node_and_the_tenant_that_were_typed(self, node: RunningNode, tmp_path: Path) -> None:
        link = tmp_path / "a link"
        link.symlink_to(node.state_dir)
        typed = f"aetherscale --tenant acme --state-dir '{link}'"
        fetching = f"to see what can be fetched: {typed} image search"
        for words, note in (
            ("vm list", f"no virtual machines; to create one: {typed} vm create web --image tiny\n"),
            ("image list", f"no images; to build one: {typed} image build tiny; {fetching}\n"),
        ):
            words_typed = (*words.split(), "--tenant", "acme", "--state-dir", str(link))
            assert await node.cli(*words_typed) == (0, "", note)
        _, _, err = await node.cli("image", "build", "tiny", "--tenant", "acme", "--state-dir", str(link))
        assert f"next: {typed} vm create --image tiny\n" in err
        _, _, err = await node.cli(
            "vm", "create", "web", "--image", "tiny", "--tenant", "acme", "--state-dir", str(link)
        )
        assert f"next: {typed} vm console web\n" in err

    @pytest.mark.parametrize("json_too", ["", " --json"])
    async def test_where_stdout_is_closed_it_is_said_what_was_done(self, node: RunningNode, json_too: str) -> None:
        for line, done in (
            ("vm create web --image blank", "VM web ({}) is ready"),
            ("vm stop web", "VM web ({}) is stopped"),
            ("vm start web --no-wait", "VM web ({}) is "),
            ("vm exec web -- echo x", "the program has run" if json_too else "the program has begun"),
            ("vm delete web", "VM web ({}) is deleted"),
        ):
            words = line.split(" -- ")
            typed = " -- ".join((f"{words[0]}{json_too}", *words[1:]))
            status, err = await closed(node, typed)
            (vm,) = await told(node, "vm", "list", "--all")
            assert status == 1, err
            told_done = f"the request was taken all the same: {done.format(vm['id'])}"
            assert f"stdout cannot be written: Bad file descriptor; {told_done}" in err
            if line.endswith("--no-wait"):
                await good(node, "vm", "wait", "web")
        status, err = await closed(node, f"image delete blank{json_too}")
        (image,) = await told(node, "image", "list", "--all")
        assert (status, f"all the same: image blank ({image['id']}) is deleted" in err) == (1, True), err
        assert await closed(node, "image list --all") == (1, "error: stdout cannot be written: Bad file descriptor\n")

    async def test_a_human_reads_the_same_refusal(self, node: RunningNode) -> None:
        status, out, err = await node.cli("vm", "show", "wbe")
        assert (status, out, err) == (3, "", "error: no such VM: 'wbe'\nhint: aetherscale vm list\n")

    async def test_an_image_that_cannot_be_read_is_told_by_its_path_and_where_to_look(self, node: RunningNode) -> None:
        status, _, err = await node.cli("image", "import", "/nosuch/file.img", "--name", "gone")
        assert status == 1
        assert "error: image import: /nosuch/file.img cannot be read: No such file or directory" in err
        assert "hint: " in err


async def closed(node: RunningNode, line: str) -> tuple[int | None, str]:
    """The status and the stderr of a command whose stdout is closed."""
    command = f"exec '{sys.executable}' -m aetherscale {line} >&-"
    process = await asyncio.create_subprocess_exec("sh", "-c", command, stderr=PIPE, env=node.environment, cwd=ROOT)
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    return process.returncode, err.decode()
