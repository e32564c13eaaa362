"""Inside a real guest by the command line: programs with streams, and files that are copied in and out."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from tests.support.eventually import asked_until
from tests.support.node import PATIENCE_S, ROOT, RunningNode

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

MIB = 1024 * 1024
SECRET = "fifteen-men-on-the-dead-man's-chest"


async def good(node: RunningNode, *words: str) -> str:
    """What a command that has to succeed writes to stdout."""
    status, out, err = await node.cli(*words)
    assert status == 0, err
    return out


async def web(node: RunningNode) -> None:
    """A VM whose agent answers."""
    await good(node, "vm", "create", "web", "--image", "tiny", "--memory", "256M")

    async def answers() -> bool:
        return bool((await node.task("compute", "exec-vm", vm_id="web", command=["true"]))["type"] == "result")

    await asked_until(answers, PATIENCE_S)


async def started(node: RunningNode, *words: str, stdin: int | None = PIPE) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aetherscale", "vm", *words),
        stdin=stdin, stdout=PIPE, stderr=PIPE, env=node.environment, cwd=ROOT,
    )  # fmt: skip


async def ended(process: Process, given: bytes | None = None) -> tuple[int, bytes, str]:
    out, err = await asyncio.wait_for(process.communicate(given), PATIENCE_S)
    assert process.returncode is not None
    return process.returncode, out, err.decode()


async def until_gone(node: RunningNode, pattern: str) -> None:
    """Until no process of the guest has this in its command line."""

    async def gone() -> bool:
        script = f"! grep -lz '^{pattern}' /proc/[0-9]*/cmdline 2> /dev/null | grep -q ."
        asked = await node.task("compute", "exec-vm", vm_id="web", command=["sh", "-c", script])
        return bool(asked["exit-code"] == 0)

    await asked_until(gone, PATIENCE_S)


async def in_guest(node: RunningNode, script: str) -> str:
    return await good(node, "vm", "exec", "web", "--", "sh", "-c", script)


async def test_programs_with_streams(node: RunningNode) -> None:
    await web(node)
    # Output comes while the program runs, and its two outputs come apart.
    talking = await started(node, "exec", "web", "--", "sh", "-c", "echo one; echo two >&2; read x; echo $x; exit 7")
    assert talking.stdout is not None
    assert talking.stderr is not None
    assert talking.stdin is not None
    assert await asyncio.wait_for(talking.stdout.readline(), PATIENCE_S) == b"one\n"
    assert await asyncio.wait_for(talking.stderr.readline(), PATIENCE_S) == b"two\n"
    assert await ended(talking, b"three\n") == (7, b"three\n", "")
    # Any bytes, and many, both ways at once.
    every = bytes(range(256)) * (3 * MIB // 256)
    assert await ended(await started(node, "exec", "web", "cat"), every) == (0, every, "")
    # A program that needs no input ends, though more is given; and one whose output nobody reads is hung up.
    more = f"head -c {3 * MIB} /dev/zero | {sys.executable} -m aetherscale vm exec web true"
    piped = await asyncio.create_subprocess_shell(more, stdout=PIPE, stderr=PIPE, env=node.environment, cwd=ROOT)
    assert await ended(piped) == (0, b"", "")
    shell = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m aetherscale vm exec web -- yes | head -n 2", stdout=PIPE, env=node.environment, cwd=ROOT
    )
    assert (await asyncio.wait_for(shell.communicate(), PATIENCE_S))[0] == b"y\ny\n"
    await until_gone(node, "yes")
    await a_program_that_is_left(node)
    await a_program_whose_node_is_killed(node)


async def a_program_that_is_left(node: RunningNode) -> None:
    status, out, err = await ended(await started(node, "exec", "web", "--timeout", "10s", "--", "sleep", "1000"))
    assert (status, out, err) == (124, b"", "error: 'sleep' had not ended within 10 s, and was ended (SIGHUP)\n")
    deaf = "trap '' HUP; echo here; while :; do sleep 1; done"
    status, _, err = await ended(await started(node, "exec", "web", "--timeout", "10s", "--", "sh", "-c", deaf))
    assert status == 5
    assert "continues in spite of SIGHUP in the guest, as process" in err
    pid = err.split("kill -9 ")[1].split()[0]
    await good(node, "vm", "exec", "web", "--", "kill", "-9", pid)
    # The first Ctrl-C is the program's; the second leaves.
    heard = await started(
        node, "exec", "web", "--", "sh", "-c", "trap 'echo heard' INT; echo here; sleep 1; sleep 1000"
    )
    assert heard.stdout is not None
    await asyncio.wait_for(heard.stdout.readline(), PATIENCE_S)
    heard.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(heard.stdout.readline(), PATIENCE_S) == b"heard\n"
    heard.send_signal(signal.SIGINT)
    status, _, err = await ended(heard)
    assert (status, "was left before it had ended" in err) == (1, True)
    await what_cannot_be_run(node)
    await until_gone(node, "sleep.1000")


async def what_cannot_be_run(node: RunningNode) -> None:
    script = "printf '#!/no/such/shell\\n' > /root/orphan; echo 'exit 3' > /root/plain; chmod +x /root/orphan"
    await in_guest(node, script)
    for words, status, why in (
        (("no-such-program",), 127, "error: the guest could not run 'no-such-program': no such program"),
        (("/no/such/program",), 127, "error: the guest could not run '/no/such/program': no such program"),
        (("/root/plain",), 126, "it is a directory, or not executable"),
        (("/root",), 126, "it is a directory, or not executable"),
        (("/root/orphan",), 127, "env: "),
        (("sh", "-c", "exit 127"), 127, ""),
        (("--json", "--", "no-such-program"), 127, "No such file or directory"),
    ):
        found = await node.cli("vm", "exec", "web", *words[: words.index("--")] if "--" in words else (), "--",
                               *words[words.index("--") + 1 :] if "--" in words else words)  # fmt: skip
        assert (found[0], why in found[2], "line " in found[2]) == (status, True, False), found


async def test_a_qemu_that_hangs_holds_up_nobody_for_longer_than_was_said(node: RunningNode) -> None:
    """The words say so as well, and what ends the VM ends those who wait for its guest."""
    await web(node)
    sleeping = await started(node, "exec", "web", "--timeout", "15s", "--", "sh", "-c", "echo here; exec sleep 1000")
    assert sleeping.stdout is not None
    await asyncio.wait_for(sleeping.stdout.readline(), PATIENCE_S)
    pid = int((await node.task("compute", "vm-info", vm_id="web"))["host"]["pid"])
    os.kill(pid, signal.SIGSTOP)
    status, _, err = await ended(sleeping)
    assert (status, "had not ended within 15 s; it may continue in the guest" in err) == (5, True), err
    status, _, err = await ended(await started(node, "exec", "web", "--timeout", "1s", "--", "true"))
    assert (status, "had not begun within 1 s" in err) == (5, True), err
    status, _, err = await ended(await started(node, "exec", "web", "--", "true"))
    assert (status, "QEMU does not answer: it is busy, hangs, or has ended" in err, "QMP" in err) == (1, True, False), (
        err
    )
    waiting = await started(node, "exec", "web", "--json", "--timeout", "1h", "--", "true")
    os.kill(pid, signal.SIGKILL)
    status, _, err = await ended(waiting)
    assert status == 1, err
    # It waited for the agent, came just after, or came to the VM that the policy has restarted.
    told = ("the VM has ended", "is not running", "does not answer", "no guest agent answers")
    assert any(words in err for words in told), err


async def a_program_whose_node_is_killed(node: RunningNode) -> None:
    left = await started(node, "exec", "web", "--", "sh", "-c", "echo here; exec sleep 2000")
    assert left.stdout is not None
    await asyncio.wait_for(left.stdout.readline(), PATIENCE_S)
    await node.kill()
    status, _, err = await ended(left)
    assert status == 4, err
    await node.start()
    await until_gone(node, "sleep.2000")
    assert await in_guest(node, "echo again") == "again\n"


async def test_files_are_copied_both_ways(node: RunningNode, tmp_path: Path) -> None:
    await web(node)
    here = tmp_path / "here"
    here.mkdir()
    content = os.urandom(64 * MIB)
    big = here / "big file"
    big.write_bytes(content)
    big.chmod(0o640)
    assert "64.0 MiB" in await good(node, "vm", "copy", str(big), "web:/data/")
    told = await in_guest(node, "stat -c '%a %s' '/data/big file'; sha256sum < '/data/big file'; ls -A /data | wc -l")
    assert told.split() == ["640", str(64 * MIB), hashlib.sha256(content).hexdigest(), "-", "2"]
    back = tmp_path / "back"
    await good(node, "vm", "copy", "web:/data/big file", str(back))
    assert (back.read_bytes() == content, back.stat().st_mode & 0o7777) == (True, 0o640)
    await small_files_and_what_is_none(node, here)
    await in_guest(node, "rm /data/big*")
    await interrupted(node, big, content)
    # Nothing of a content is anywhere but at its two places.
    log = (node.state_dir / "events.db").read_bytes() + (node.state_dir / "events.db-wal").read_bytes()
    assert SECRET.encode() not in log
    assert not any(SECRET in line for line in node.output)


async def small_files_and_what_is_none(node: RunningNode, here: Path) -> None:
    for name, text in (("empty", ""), ("$(reboot);'\"\n -rf", SECRET), ("-n", "dash")):
        (here / name).write_text(text)
        await good(node, "vm", "copy", str(here / name), "web:/root/")
        await good(node, "vm", "copy", f"web:/root/{name}", str(here / "copy"), "--force")
        assert (here / "copy").read_text() == text
    # What is made as it is read comes whole, though its size is said to be 0.
    await good(node, "vm", "copy", "web:/proc/version", str(here))
    assert (here / "version").read_text() == await in_guest(node, "cat /proc/version")
    await good(node, "vm", "copy", "/proc/version", "web:/root/version-of-host")
    assert await in_guest(node, "cat /root/version-of-host") == Path("/proc/version").read_text()
    await a_target_that_is_full(node, here)
    # What is there stays, unless it is said otherwise; two who bring the same at once do no harm.
    (here / "new").write_text("new")
    for words in (("web:/root/empty", str(here / "new")), (str(here / "new"), "web:/root/empty")):
        status, _, err = await node.cli("vm", "copy", *words)
        assert (status, "--force replaces it" in err) == (1, True)
    assert (here / "new").read_text() == "new"
    assert await in_guest(node, "wc -c < /root/empty") == "0\n"
    await good(node, "vm", "copy", "--force", str(here / "new"), "web:/root/empty")
    assert await in_guest(node, "cat /root/empty") == "new"
    # A link that is to be replaced is replaced, and what it leads to stays.
    await in_guest(node, "ln -s /etc/passwd /root/link")
    await good(node, "vm", "copy", "--force", str(here / "new"), "web:/root/link")
    assert await in_guest(node, "cat /root/link; grep -c root /etc/passwd") == "new1\n"
    for words, status, why in (
        (("web:/root", str(here)), 2, "is a directory in the guest"),
        (("web:/dev/zero", str(here)), 2, "is no regular file in the guest"),
        ((str(here), "web:/data"), 2, f"tar c -C {here} . | aetherscale vm exec web -- tar x -C /data"),
        (("web:/nowhere", str(here)), 3, "is not there in the guest"),
        ((str(here), "web:/root"), 2, "is a directory, and one file is copied at a time"),
        ((str(here / "new"), "web:/nowhere/new"), 3, "has no directory for"),
        ((str(here / "new"), "web:root"), 2, "expected a path in the guest that begins with /"),
        ((str(here / "new"), str(here)), 2, "expected a file here and one of a VM"),
        (("web:/etc/passwd", "web:/root/x"), 2, "expected a file here and one of a VM"),
        (("/dev/null", "web:/root/x"), 2, "is no regular file"),
        ((str(here / "new"), "web:/proc"), 1, "could not do it"),
        ((str(here / "new"), "wbe:/root"), 3, "did you mean: web"),
    ):
        found = await node.cli("vm", "copy", *words)
        assert (found[0], why in found[2]) == (status, True), found
    two = await asyncio.gather(*(node.cli("vm", "copy", str(here / "new"), f"web:/root/at-once-{n}") for n in (1, 2)))
    assert [status for status, _, _ in two] == [0, 0]
    assert await in_guest(node, "cat /root/at-once-1 /root/at-once-2; ls -A /root | grep -c part; true") == "newnew0\n"


async def a_target_that_is_full(node: RunningNode, here: Path) -> None:
    """In the guest; what is done here is a matter of `test_vm_copy.py`."""
    await in_guest(node, "mkdir /root/small && mount -t tmpfs -o size=1m tmpfs /root/small")
    (here / "large").write_bytes(os.urandom(3 * MIB))
    status, _, err = await node.cli("vm", "copy", str(here / "large"), "web:/root/small/")
    assert (status, "web has no room for the 3.0 MiB of /root/small/large; what had come was removed" in err) == (
        1,
        True,
    )
    assert "hint: aetherscale vm exec web -- df -h /root/small" in err
    assert await in_guest(node, "ls -A /root/small; umount /root/small; rmdir /root/small") == ""


async def interrupted(node: RunningNode, big: Path, content: bytes) -> None:
    """A copy that is cut off goes on where it was, whoever was killed."""
    for which in ("the copy", "the node"):
        copying = await started(node, "copy", str(big), "web:/data/it")
        part = f"/data/.it.{hashlib.sha256(content).hexdigest()[:16]}.part"

        async def has_begun(part: str = part) -> bool:
            look = ["sh", "-c", f"[ $(stat -c %s {part}) -gt {2 * MIB} ]"]
            return bool((await node.task("compute", "exec-vm", vm_id="web", command=look))["exit-code"] == 0)

        await asked_until(has_begun, PATIENCE_S)
        if which == "the copy":
            copying.send_signal(signal.SIGKILL)
            await ended(copying)
        else:
            await node.kill()
            status, _, err = await ended(copying)
            assert status == 4, err
            await node.start()
        assert await in_guest(node, "ls /data | grep -c it; true") == "0\n", "what is not whole is not there"

    async def is_let_go() -> bool:
        status, out, err = await node.cli("vm", "copy", str(big), "web:/data/it")
        assert status == 0 or "is under way" in err, err
        return status == 0 and "of them before" in out

    await asked_until(is_let_go, PATIENCE_S)
    assert hashlib.sha256(content).hexdigest() in await in_guest(node, "sha256sum < /data/it")
    back = big.with_name("again")
    kept = back.with_name(f".again.{hashlib.sha256(content).hexdigest()[:16]}.part")
    # A partial file whose bytes are of something else is found out.
    kept.write_bytes(os.urandom(32 * MIB))
    await good(node, "vm", "copy", "web:/data/it", str(back))
    assert back.read_bytes() == content
    back.unlink()
    kept.write_bytes(content[: 40 * MIB + 17])
    assert "40.0 MiB of them before" in await good(node, "vm", "copy", "web:/data/it", str(back))
    assert (back.read_bytes() == content, kept.exists()) == (True, False)
    kept.symlink_to(big)
    status, _, err = await node.cli("vm", "copy", "--force", "web:/data/it", str(back))
    assert (status, "cannot be written" in err, big.read_bytes() == content) == (1, True, True)
    kept.unlink()
    back.unlink()
    copying = await started(node, "copy", "web:/data/it", str(back))
    while not kept.exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await good(node, "vm", "stop", "web", "--kill")
    status, _, err = await ended(copying)
    # The copy had ended already, was under way, or its program was just being started.
    told = ("the same command goes on where this one was", "is not running", "the VM has ended", "does not answer")
    assert status == 0 or any(words in err for words in told), err
