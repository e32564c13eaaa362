"""Whatever one tenant does, nothing that another one sees shows it or depends on it.

Two worlds go side by side. In one of them the tenants `red` and `blue` work, with the same keys and names; in the other
one `red` works alone. What `red` hears, lists and has in the log has to be the same in both.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from msgspec import Struct
from msgspec.structs import replace

from aetherscale.kernel.messages import split_stream
from aetherscale.kernel.names import derive_id
from aetherscale.kernel.wire import encode
from tests.support.memory_node import MemoryNode
from tests.support.tenants import BLUE, RED

KEYS: Final = ("k1", "k2", "k3", "k4", "k5", "k6")
NAMES: Final = ("web", "db")
IMAGES: Final = ("tiny", "other")
IDS: Final = tuple(derive_id("host1", tenant, key) for tenant in (RED, BLUE) for key in KEYS[:3])
"""What the objects are called that the keys make, of either tenant: both may know, and use, all of them."""

EXAMPLES: Final = 60
STEPS: Final = 30


class Step(Struct, frozen=True):
    """One request."""

    component: str
    task: str
    options: dict[str, Any]
    key: str | None = None
    object_id: str = ""


vms = st.sampled_from(["web"] * 6 + ["db"] * 2 + [*IDS])
images = st.sampled_from(["tiny"] * 4 + ["other"] + [*IDS])
keys = st.sampled_from([*KEYS, None])


def about_vm(task: str, key: str | None, vm: str, by_subject: bool) -> Step:
    more: dict[str, Any] = {"command": ["true"]} if task == "exec-vm" else {"kill": True} if task == "stop-vm" else {}
    if by_subject and vm in IDS:
        return Step("compute", task, more, key, vm)
    return Step("compute", task, {"vm-id": vm, **more}, key)


TASKS: Final = (
    *("start-vm", "stop-vm", "restart-vm", "delete-vm") * 2,
    *("vm-info", "vm-logs", "exec-vm", "list-vms", "console-input"),
    *("create-vm",) * 3,
    *("build-image", "delete-image", "image-info", "list-images"),
)


def step_of(task: str, key: str | None, name: str | None, vm: str, image: str, by_subject: bool) -> Step:
    match task:
        case "create-vm":
            # A name that the node makes is made of the id, which is drawn where there is no key.
            return Step("compute", task, {"image": image, "name": name or "ci"}, key)
        case "list-vms" | "list-images":
            return Step("compute" if task == "list-vms" else "images", task, {"all": True})
        case "console-input":
            return Step("compute", task, {"session": "s", "data": ""})
        case "build-image":
            return Step("images", task, {"recipe": "tiny", "name": image if image in IMAGES else "tiny"}, key)
        case "delete-image" | "image-info":
            return Step("images", task, {"image": image}, key)
        case _:
            return about_vm(task, key, vm, by_subject)


steps = st.builds(step_of, st.sampled_from(TASKS), keys, st.sampled_from([*NAMES, None]), vms, images, st.booleans())


class Plain:
    """Makes what a tenant sees comparable: what is drawn or counted is called by the order in which it is seen."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def of(self, value: Any) -> Any:
        text = encode(value).decode()
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "<time>", text)
        text = re.sub(r"host1\.epoch1\.\d+", "<event>", text)
        text = re.sub(r'"(pid|start-ticks)":\d+', r'"\1":0', text)
        text = re.sub(r"\bid-\d+\b", self._name, text)
        text = re.sub(r"\b[0-9][0-9a-f]{15}\b", self._name, text)
        text = re.sub(r"\bvm-[0-9][0-9a-f]{7}\b", self._name, text)
        return msgspec.json.decode(text)

    def _name(self, found: re.Match[str]) -> str:
        text = found.group()
        return text if text in IDS else self._seen.setdefault(text, f"<{len(self._seen)}>")


class World:
    """One node, and what `red` has seen of it."""

    def __init__(self) -> None:
        self.node = MemoryNode()
        self.plain = Plain()

    async def ask(self, tenant: str, step: Step) -> Any:
        chunks = await self.node.ask(
            step.component, step.task, step.options, key=step.key, tenant=tenant, object_id=step.object_id
        )
        # What the host says on the way is no part of an answer: a repeat may come too late for it.
        return (
            self.plain.of([chunk for chunk in chunks if chunk.get("status") != "progress"]) if tenant == RED else None
        )

    async def events(self) -> Any:
        """What `red` has in the log, stream by stream; on the bus each is on a subject of its tenant."""
        streams: dict[str, list[Any]] = {}
        owners: dict[str, str] = {}
        for each in await self.node.events():
            assert owners.setdefault(each.stream, each.tenant) == each.tenant, f"{each.stream} has two tenants"
            if each.tenant == RED:
                told = (type(each.event).__name__, msgspec.to_builtins(each.event), each.version, each.actor)
                streams.setdefault(each.stream, []).append((*told, each.command_id, each.causation_id))
        kinds = [(split_stream(stream)[0], self.plain.of(events)) for stream, events in streams.items()]
        return sorted(kinds, key=repr)


class Complaints(logging.Handler):
    """What a node logs as an error is a mistake, also where the caller is none the wiser."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Remember it."""
        self.heard.append(record.getMessage())


class TwoTenants(RuleBasedStateMachine):
    """`red` and `blue` on one node, and `red` alone on another."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.shared, self.alone = World(), World()
        self.asked: list[Step] = []
        self.complaints = Complaints()
        logging.getLogger("aetherscale").addHandler(self.complaints)

    @initialize()
    def begin(self) -> None:
        """Both have an image and a VM to begin with."""
        for world in (self.shared, self.alone):
            self._do(world.node.start)
        build = Step("images", "build-image", {"recipe": "tiny"})
        for step in (build, Step("compute", "create-vm", {"image": "tiny", "name": "web"})):
            self.both_ask_the_same(step)

    @rule(step=steps)
    def red_asks(self, step: Step) -> None:
        """It hears the same in both worlds."""
        self._same(step, self._do(lambda: self.shared.ask(RED, step)))

    @rule(step=steps)
    def blue_asks(self, step: Step) -> None:
        """Something happens that must not show."""
        self._do(lambda: self.shared.ask(BLUE, step))

    @rule(red=steps, blue=steps, blue_first=st.booleans())
    def both_ask_at_once(self, red: Step, blue: Step, blue_first: bool) -> None:
        """They meet in one commit."""

        async def both() -> Any:
            asked = [self.shared.ask(RED, red), self.shared.ask(BLUE, blue)]
            answers = await asyncio.gather(*(reversed(asked) if blue_first else asked))
            return answers[1 if blue_first else 0]

        self._same(red, self._do(both))

    @rule(step=steps)
    def both_ask_the_same(self, step: Step) -> None:
        """The same key, the same body, at the same time."""
        self.both_ask_at_once(step, step, blue_first=True)

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0, 20))
    def red_repeats(self, which: int) -> None:
        """What it asked for before is what it hears again."""
        self.red_asks(self.asked[-1 - which % len(self.asked)])

    @rule(step=steps, between=steps)
    def red_repeats_what_blue_comes_between(self, step: Step, between: Step) -> None:
        """A key belongs to its tenant: the same one is another one's for something else."""
        self.red_asks(step)
        self.blue_asks(replace(between, key=step.key))
        self.red_asks(step)

    @rule()
    def the_nodes_are_started_anew(self) -> None:
        """What is known then is known from the log."""
        for world in (self.shared, self.alone):
            self._do(world.node.close)
            self._do(world.node.start)

    def teardown(self) -> None:
        """In the end the logs say the same of `red`."""
        try:
            assert self._do(self.shared.events) == self._do(self.alone.events)
            assert self.complaints.heard == []
        finally:
            logging.getLogger("aetherscale").removeHandler(self.complaints)
            for world in (self.shared, self.alone):
                self._do(world.node.close)
            self.loop.close()

    def _same(self, step: Step, answer: Any) -> None:
        if step.key is not None:
            self.asked.append(step)
        alone = self._do(lambda: self.alone.ask(RED, step))
        assert answer == alone, f"{step}: with another tenant {answer}, alone {alone}"
        assert self.complaints.heard == []

    def _do(self, what: Callable[[], Awaitable[Any]]) -> Any:
        async def patiently() -> Any:
            async with asyncio.timeout(30):
                return await what()

        return self.loop.run_until_complete(patiently())


@pytest.mark.timeout(600)
def test_nothing_that_a_tenant_sees_depends_on_another_one() -> None:
    plan = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        derandomize=True,
        # A story is told in seconds, and made shorter in minutes: add Phase.shrink to have that.
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(TwoTenants, settings=plan)
