"""The firewall as its callers have it: over NATS, from a node with a real host, in a network namespace of its own."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from benchmarks import networks
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn, percentile
from benchmarks.logs import TENANT
from benchmarks.namespaces import own_namespace
from benchmarks.rows_networked import COUNT, networked
from benchmarks.rows_node import VMS
from benchmarks.served import node, wire
from benchmarks.wire import Wire

CHANGES: Final = 100
QUESTIONS: Final = 50
BEARERS: Final = 50
LEADER: Final = "web"


@asynccontextmanager
async def served_groups(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """A node with 1,000 stopped VMs in 20 networks, of which 50 bear one group."""
    among = networks.networks(COUNT)
    directory = await networked(context.directory / "state", among, those := networks.ports(among, 0, VMS))
    with own_namespace():
        try:
            async with node(directory, simulated=False):
                plain = wire(directory)
                names = [ports[0].hostname for ports in those.values()]
                try:
                    await asyncio.to_thread(prepare, plain, names[:BEARERS])
                    yield {OURS: lambda: asyncio.to_thread(groups_turn, plain, names, itertools.count(1024))}
                finally:
                    plain.close()
        finally:
            await networks.end_resolvers(directory)


def ask(plain: Wire, component: str, task: str, **options: Any) -> bytes:
    """All that is said in reply to a command."""
    return plain.ask(f"aether.v1.{TENANT}.cmd.{component}.{task}", msgspec.json.encode(options))


def prepare(plain: Wire, bearers: Sequence[str]) -> None:
    """A group, and those who bear it."""
    ask(plain, "firewall", "create-group", name=LEADER, rules=["in:tcp:80"])
    for name in bearers:
        ask(plain, "firewall", "attach-group", **{"vm-id": name, "group": LEADER})


def groups_turn(plain: Wire, names: Sequence[str], ports: Iterator[int]) -> Samples:
    """Milliseconds to the last reply, which comes when the kernel has it: of new rules, and of one more bearer."""

    def took_ms(component: str, task: str, **options: Any) -> float:
        begun = time.perf_counter()
        ask(plain, component, task, **options)
        return (time.perf_counter() - begun) * 1000

    rules = [
        took_ms("firewall", "set-rules", group=LEADER, rules=[f"in:tcp:{port}"])
        for port in itertools.islice(ports, CHANGES)
    ]
    last = {"vm-id": names[-1], "group": LEADER}
    attached, detached = [], []
    for _ in range(QUESTIONS):
        attached.append(took_ms("firewall", "attach-group", **last))
        detached.append(took_ms("firewall", "detach-group", **last))
    explained = [
        took_ms("firewall", "explain", **{"from": names[number], "to": names[-1 - number], "port": "tcp/80"})
        for number in range(QUESTIONS)
    ]
    all_changes = [*rules, *attached, *detached]
    return {
        "rules ms": rules,
        "attach ms": attached,
        "detach ms": detached,
        "changes p99 ms": [percentile(all_changes, 99)],
        "explain ms": explained,
    }


FIREWALL_ROWS: Final = (
    Row(
        "group-changes",
        "a group with 1,000 VMs present, over NATS: other rules, one bearer more or less; and `explain`",
        served_groups,
        (
            Target("rules ms", "<=", 10),
            Target("changes p99 ms", "<=", 50),
            Target("explain ms", "<=", 5),
        ),
        rounds=7,
        note="Stopped VMs with ports in 20 networks, of which 50 bear the group. Changes end when the kernel has them; "
        "`explain` looks at the log, and at the filters of others.",
    ),
)
