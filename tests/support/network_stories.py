"""SIGKILL of the real node at every call of its networks' driver and at every step of it on the host: stories of it.

After each kill the node is started again, and what was asked is asked again.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from aetherscale.actors.network.dnsmasq.resolvers import Resolvers
from tests.integration.conftest import MakeNode
from tests.support.conversation import Conversation, guest_of
from tests.support.eventually import asked_until
from tests.support.kills import Account, started_again, until_answered
from tests.support.network_host import Facts, expected, found
from tests.support.network_namespaces import network_namespace
from tests.support.node import RunningNode, guests
from tests.support.raw_images import idle_image

EVERY = int(os.environ.get("AETHERSCALE_KILLS_EVERY", "0"))
"""Which calls are tried: each so-manieth, from `FIRST` on; with 0 those of a sample."""
FIRST = int(os.environ.get("AETHERSCALE_KILLS_FIRST", "1"))
MOST_S = 20.0
"""Bounds a hang. It is less than the time after which a node compares its host with its log by itself."""

Steps = Sequence[tuple[str, str, dict[str, Any]]]
"""Key, task and options; `talk` begins a conversation, `hush` ends it, and `restart` is a kill between two tasks."""


def vm(name: str, *networks: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "image": "bare",
        "memory-mib": 64,
        "restart": "never",
        "virtual-network": list(networks),
        **more,
    }


@contextlib.contextmanager
def host() -> Iterator[None]:
    """A host of its own, which forwards."""
    with network_namespace():
        subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", setting).write_text("1")
        yield


async def as_the_state_says(node: RunningNode, moment: str) -> None:
    """What is on the host is what the state says, as soon as the kernel has removed what it removes later."""
    wanted: Facts = await expected(node)
    seen: list[Facts] = []

    async def is_so() -> bool:
        seen[:] = [found(node.state_dir)]
        return seen[0] == wanted

    try:
        await asked_until(is_so, MOST_S)
    except TimeoutError:
        said = "\n".join(node.output[-10:])
        raise AssertionError(
            f"{moment}: missing {dict(wanted - seen[0])}, left over {dict(seen[0] - wanted)}\n{said}"
        ) from None


class Story:
    """The life of networks, groups and VMs on a node that may die once."""

    steps: ClassVar[Steps] = ()

    def __init__(self, node: RunningNode, number: int) -> None:
        self._node = node
        self._number = number
        self._account = Account()
        self.died = False
        self.exchanged = self.spoofed = 0

    async def play(self, image: Path) -> None:
        """All of it, and what has to be so after each step."""
        await self._started()
        imported = {"source": str(image), "name": "bare", "ready": "none"}
        await self._answered("image", "images.import-image", imported)
        talk: Conversation | None = None
        with ExitStack() as talking:
            for key, task, options in self.steps:
                moment = f"call {self._number}, after {key}"
                if key == "talk":
                    talk = talking.enter_context(Conversation(*await self._guests()))
                elif key == "hush":
                    talking.close()
                    assert talk is not None
                    assert (talk.lost, talk.passed) == ({}, {}), f"{moment}: {talk.lost}, {talk.passed}, of {talk.sent}"
                    self.exchanged, self.spoofed = talk.sent, talk.spoofed
                elif not task:
                    await self._restart()
                else:
                    await self._answered(key, task, options)
                await self.settled(moment)
        if await self._node.stop() != 0:
            # The fatal call was one of the last.
            self.died = True
            await started_again(self._node)
            await self.settled(f"call {self._number}, at the end")
            assert await self._node.stop() == 0
        assert found(self._node.state_dir) == {"the link lo": 1}
        assert guests(self._node.state_dir) == {}

    async def settled(self, moment: str) -> None:
        """Wait until the host is as it has to be."""
        await as_the_state_says(self._node, moment)

    async def _answered(self, key: str, task: str, options: dict[str, Any]) -> None:
        self.died |= await until_answered(self._node, self._account, key, task, options)
        answer = self._account.answers[key]
        assert answer["type"] == "result", answer

    async def _guests(self) -> tuple[Any, Any]:
        pids = {vm_id: pid for pid, vm_id in guests(self._node.state_dir).items()}
        views = [await self._node.vm(name) for name in ("web", "db")]
        one, other = (guest_of(pids[view["id"]], view) for view in views)
        return one, other

    async def _restart(self) -> None:
        await self._node.kill()
        await self._started()

    async def _started(self) -> None:
        try:
            await self._node.start()
        except AssertionError:
            await self._node.kill()
            self.died = True
            await started_again(self._node)


async def every_kill(
    make_node: MakeNode, tmp_path: Path, kind: type[Story], sample: Sequence[tuple[str, int]], reached_by: Sequence[str]
) -> None:
    """Tell a story, and again with a kill at each call of networks that it makes, or at those of a sample."""
    image = idle_image(tmp_path)

    async def played(number: int) -> tuple[Story, list[str]]:
        calls = tmp_path / f"calls-{number}"
        node = make_node(directory=f"killed-{number}")
        node.program = ("-m", "tests.support.mortal_node", str(number), str(calls), "networks")
        with host():
            try:
                story = kind(node, number)
                await story.play(image)
            except BaseException:
                # A resolver outlives its node, and so would outlive the test.
                with contextlib.suppress(AssertionError):  # The fixture closes it again, and tells.
                    await node.close()
                left = Resolvers(node.state_dir, node.name, lambda network_id, words: None)
                await left.start()
                await left.reconcile(())
                await left.close()
                raise
        return story, calls.read_text().splitlines()

    whole, names = await played(0)
    assert not whole.died
    assert set(reached_by) <= set(names)
    tried = deaths = exchanged = spoofed = 0
    sampled = [[at for at, each in enumerate(names, 1) if each == name][nth - 1] for name, nth in sample]
    for number in range(FIRST, len(names) + 1, EVERY) if EVERY else sampled:
        story, reached = await played(number)
        assert story.died == (len(reached) == number), f"call {number}: {len(reached)} calls were made"
        tried, deaths = tried + 1, deaths + story.died
        exchanged, spoofed = exchanged + story.exchanged, spoofed + story.spoofed
        print(f"call {number}, {reached[-1]}: {'died' if story.died else 'not reached'}", flush=True)
    print(
        f"{len(names)} calls of networks, {tried} tried, {deaths} deaths: nothing missing, nothing left; "
        f"{exchanged} frames of a connection, none lost; {spoofed} spoofed ones, none passed"
    )
    assert deaths > tried // 2
