"""Every command in surroundings that nobody wishes for: a sentence and a status, never what Python says of itself."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.integration.conftest import MakeNode
from tests.support.cli import good, simulated_node
from tests.support.command_lines import commands
from tests.support.node import PATIENCE_S, RunningNode
from tests.support.surroundings import BYTES, Surroundings, hostile, lines

STATUSES = frozenset(range(6))
STATUSES_OF_EXEC = STATUSES | {124, 126, 127}
"""Those of a program that was not run, or not to its end, as shells and timeout(1) have it."""
AT_ONCE = 4
SHARE = int(os.environ.get("AETHERSCALE_FUZZ_SHARE", "37"))
"""Each surroundings gets every so many-th command, another share each; `just surroundings` runs all of all."""
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900 if SHARE > 10 else 7200)]

PYTHONS_OWN = ("Traceback", "this is a fault of", "Exception ignored", "Error in sys", "Logging error")


@pytest.fixture
async def node(make_node: MakeNode, tmp_path: Path) -> RunningNode:
    """A node with simulated guests, an image for them, and a VM."""
    made = await simulated_node(make_node, tmp_path)
    await good(made, "vm", "create", "web", "--image", "blank")
    return made


class Runner:
    """Runs many commands, a few at a time, and keeps what is wrong with each."""

    def __init__(self, node: RunningNode, directory: Path) -> None:
        self._node = node
        # Some commands write the file that they are given the name of.
        self._place = directory / "here"
        self._place.mkdir(exist_ok=True)
        self._place.chmod(0o777)
        self._room = asyncio.Semaphore(AT_ONCE)
        self.wrong: list[str] = []
        self.runs = 0

    async def all(self, surroundings: Surroundings, words: list[tuple[str, ...]]) -> None:
        """Run them in these surroundings."""
        await asyncio.gather(*(self._one(surroundings, line) for line in words))

    async def _one(self, surroundings: Surroundings, words: tuple[str, ...]) -> None:
        env: dict[str, str] = dict(self._node.environment)
        for name, value in surroundings.env.items():
            env.pop(name, None)
            if value is not None:
                env[name] = value
        command = (sys.executable, "-m", "aetherscale", *surroundings.options, *words)
        async with self._room:
            process = await asyncio.create_subprocess_exec(
                *("sh", "-c", surroundings.within, "sh", "setpriv", "--pdeathsig", "KILL", *command),
                stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE, env=env, cwd=self._place,
            )  # fmt: skip
            out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        self.runs += 1
        said = out.decode(errors="replace") + err.decode(errors="replace")
        shown = f"{' '.join(words)!r}: status {process.returncode}: {said[-1500:]}"
        statuses = STATUSES_OF_EXEC if words[:2] == ("vm", "exec") else STATUSES
        if process.returncode not in statuses or any(text in said for text in PYTHONS_OWN):
            self.wrong.append(shown)
        if "--json" in words and not _is_json(out):
            self.wrong.append(f"no JSON on stdout: {shown}")


def _is_json(out: bytes) -> bool:
    """Whether it is nothing, one value, or one on each line."""
    try:
        if out:
            json.loads(out.decode())
    except ValueError:
        try:
            for line in out.splitlines():
                json.loads(line.decode())
        except ValueError:
            return False
    return True


async def test_no_command_ends_in_a_traceback_whatever_it_is_started_in(
    node: RunningNode, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    tmp_path.chmod(0o755)
    directory = tmp_path / "surroundings"
    directory.mkdir()
    plain = list(lines(tmp_path))
    assert len(plain) > 30
    both = [*plain, *(("--json", *line) for line in plain if line[:2] != ("log", "export"))]
    for at, (name, surroundings) in enumerate(hostile(directory).items()):
        if surroundings.needs_root and os.geteuid() != 0:
            continue
        with subtests.test(name):
            runner = Runner(node, tmp_path)
            await runner.all(surroundings, both[at % SHARE :: SHARE])
            assert not runner.wrong, f"{len(runner.wrong)} of {runner.runs}:\n" + "\n".join(runner.wrong)


async def test_no_word_in_any_place_makes_a_traceback(
    node: RunningNode, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    typed = list(lines(tmp_path))
    for at, word in enumerate(
        (BYTES, "", "\x1b[2J", "x" * 5000, "-", "²", "9" * 400, "a\u2028b", "../..", "\U0001f600")
    ):
        with subtests.test(repr(word[:20])):
            runner = Runner(node, tmp_path)
            variants = [variant for line in typed for variant in _with(word, line)]
            await runner.all(Surroundings(), variants[at % SHARE :: SHARE])
            assert not runner.wrong, f"{len(runner.wrong)} of {runner.runs}:\n" + "\n".join(runner.wrong)


def _with(word: str, line: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The line with the word as each of its arguments, and as the value of each option of its command."""
    for path, command in commands():
        length = len(path.split())
        if line[:length] == tuple(path.split()) and path not in ("serve",):
            variants = [(*line[:at], word, *line[at + 1 :]) for at in range(length, length + len(command.arguments))]
            options = [option for option in command.options if option.metavar]
            return variants + [(*line, f"--{option.name}={word}") for option in options]
    return []
