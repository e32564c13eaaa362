"""The rules of VMs' ports, and what it takes to mend them, in network namespaces that are gone afterwards."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from subprocess import PIPE
from typing import Final

from aetherscale.actors.compute.model.commands import NO_RULES, VmRules
from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.network.driver import HostNetworking
from aetherscale.actors.network.firewall import Firewall
from aetherscale.actors.network.known import Known
from aetherscale.actors.network.nft.messages import NETLINK_NETFILTER, NEWGEN, messages
from aetherscale.actors.network.nft.nftables import Nftables, NftError
from benchmarks import networks
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.namespaces import Place, own_namespace

NETWORKS: Final = 20
VMS: Final = 1000
ONE_BY_ONE: Final = 20
TIMES: Final = 3
MENDED: Final = 100
GROUP: Final = "a" * 16
_BEFORE_THE_RULES: Final = 2
"""Transactions: that of the flush, and that of the table of flows."""
_NFNLGRP_NFTABLES: Final = 7
FLUSH: Final = (
    "import sys, time\n"
    "from aetherscale.actors.network.nft.nftables import Nftables\n"
    "nft = Nftables()\n"
    "for line in sys.stdin:\n"
    "    nft.run('flush ruleset')\n"
    "    print(time.perf_counter(), flush=True)\n"
)
"""A program that is not ours: it flushes when it is told to, and says when it had done so."""


@asynccontextmanager
async def all_rules(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """An empty namespace; VMs that were not known before, since a node that starts knows none."""
    with own_namespace():
        nft = Nftables()
        numbers = itertools.count(0, VMS)
        yield {OURS: partial(ours_turn, Firewall(nft), numbers), "by hand": partial(by_hand_turn, nft)}
        nft.close()


async def ours_turn(firewall: Firewall, numbers: Iterator[int]) -> Samples:
    """Milliseconds for the rules of all, from what the log has of them; and for one more, and for one less."""
    among = networks.networks(NETWORKS)
    those = networks.ports(among, next(numbers), VMS)
    await firewall.remove()
    known = Known()
    begun_cpu_s, begun = time.process_time(), time.perf_counter()
    known.set_networks(among)
    known.replace_ports(those)
    await firewall.replace(known.rules())
    all_ms, all_cpu_ms = [(time.perf_counter() - begun) * 1000], [(time.process_time() - begun_cpu_s) * 1000]
    more_ms: list[float] = []
    less_ms: list[float] = []
    for vm_id, of_vm in list(networks.ports(among, 60_000, ONE_BY_ONE).items()):
        for wanted, took_ms in ((of_vm, more_ms), ((), less_ms)):
            begun = time.perf_counter()
            known.set_ports({vm_id: wanted})
            await firewall.change(lambda _: known.rules())
            took_ms.append((time.perf_counter() - begun) * 1000)
    return {"all ms": all_ms, "all CPU ms": all_cpu_ms, "one more ms": more_ms, "one less ms": less_ms}


async def by_hand_turn(nft: Nftables) -> Samples:
    """The same texts, made beforehand, by the same library."""
    among = networks.networks(NETWORKS)
    those = networks.ports(among, 0, VMS)
    text = networks.text(among, those)
    ones = [dict([each]) for each in networks.ports(among, 60_000, ONE_BY_ONE).items()]
    texts = [networks.texts_of_one(among, those, one) for one in ones]
    nft.run("flush ruleset")
    begun_cpu_s, begun = time.process_time(), time.perf_counter()
    nft.run(text)
    all_ms, all_cpu_ms = [(time.perf_counter() - begun) * 1000], [(time.process_time() - begun_cpu_s) * 1000]
    more_ms: list[float] = []
    less_ms: list[float] = []
    for more, less in texts:
        for wanted, took_ms in ((more, more_ms), (less, less_ms)):
            begun = time.perf_counter()
            nft.run(wanted)
            took_ms.append((time.perf_counter() - begun) * 1000)
    return {"all ms": all_ms, "all CPU ms": all_cpu_ms, "one more ms": more_ms, "one less ms": less_ms}


@asynccontextmanager
async def groups(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """The driver of networks, with the rules of 1,000 VMs, of which each tenth bears one group."""
    among = networks.networks(NETWORKS)
    those = networks.ports(among, 0, VMS)
    with own_namespace(), closing(Nftables()) as nft:
        async with networks.driver(context.directory / "groups", among, those) as driver:
            await driver.apply_group(GROUP, [Rule("in", "tcp", ("80",))])
            for vm_id in list(those)[::10]:
                await driver.apply_rules(vm_id, VmRules((GROUP,)))
            yield {
                OURS: partial(groups_turn, driver, list(those)[1::5]),
                "by hand": partial(groups_by_hand, nft, those),
            }


async def groups_turn(driver: HostNetworking, vm_ids: Sequence[str]) -> Samples:
    """Milliseconds for another rule of a group, and for 200 VMs that get a group at one moment, and lose it."""
    rule_ms: list[float] = []
    for number in range(ONE_BY_ONE):
        begun = time.perf_counter()
        await driver.apply_group(GROUP, [Rule("in", "tcp", (str(80 + number),)), Rule("in", "icmp")])
        rule_ms.append((time.perf_counter() - begun) * 1000)
    begun = time.perf_counter()
    await asyncio.gather(*(driver.apply_rules(vm_id, VmRules((GROUP,))) for vm_id in vm_ids))
    attach_ms = [(time.perf_counter() - begun) * 1000]
    await asyncio.gather(*(driver.apply_rules(vm_id, NO_RULES) for vm_id in vm_ids))
    return {"rule ms": rule_ms, "200 attached ms": attach_ms}


async def groups_by_hand(nft: Nftables, those: networks.Ports) -> Samples:
    """The least that the kernel has to be told: one rule, and one element of a map for each VM."""
    taps = [port.tap for ports in list(those.values())[2::5] for port in ports]
    nft.run("table bridge byhand {\nmap bears {\ntype ifname : verdict\n}\nchain group {\n}\n}\n")
    rule_ms: list[float] = []
    for number in range(ONE_BY_ONE):
        begun = time.perf_counter()
        nft.run(f"flush chain bridge byhand group\nadd rule bridge byhand group tcp dport {80 + number} accept\n")
        rule_ms.append((time.perf_counter() - begun) * 1000)
    begun = time.perf_counter()
    nft.run("add element bridge byhand bears { " + ", ".join(f'"{tap}" : goto group' for tap in taps) + " }\n")
    attach_ms = [(time.perf_counter() - begun) * 1000]
    nft.run("delete table bridge byhand\n")
    return {"rule ms": rule_ms, "200 attached ms": attach_ms}


class Flusher:
    """A program of somebody else's in the namespace of this thread, which flushes all rules."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", FLUSH], stdin=PIPE, stdout=PIPE, text=True)

    def begin(self) -> None:
        """Have it flush, and do not wait for that."""
        assert self._process.stdin is not None
        self._process.stdin.write("flush\n")
        self._process.stdin.flush()

    def flushed_s(self) -> float:
        """When it had done so, as `time.perf_counter` tells it in any process."""
        assert self._process.stdout is not None
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@asynccontextmanager
async def flushes(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """The driver of networks, with the rules of VMs; beside a thread in another namespace that only waits for it."""
    among = networks.networks(1)
    those = networks.ports(among, 0, MENDED)
    text = networks.text(among, those)
    place = Place()
    others = place.do(Flusher)
    with own_namespace(), closing(Flusher()) as flusher, closing(Nftables()) as nft:
        async with networks.driver(context.directory / "state", among, those):
            yield {
                OURS: partial(mended_turn, flusher, nft),
                "by hand": lambda: asyncio.to_thread(place.do, partial(waiting_turn, others, text)),
            }
    others.close()
    place.close()


async def mended_turn(flusher: Flusher, nft: Nftables) -> Samples:
    """Milliseconds from the end of a flush until the rules are whole again."""
    took_ms = []
    for _ in range(TIMES):
        with listening() as heard:
            flusher.begin()
            # Not waited for by events of the network: of a program that fights for the rules few are told.
            whole_s = await asyncio.to_thread(mended_s, heard, nft)
        took_ms.append((whole_s - flusher.flushed_s()) * 1000)
    return {"ms": took_ms}


def mended_s(heard: socket.socket, nft: Nftables) -> float:
    """When the transaction was heard of after which the rules of all VMs are there.

    It is at least the third one, after the flush and that of the table of flows; one of before may be late.
    """
    for number in itertools.count(1):
        at_s = heard_s(heard, 1)
        with suppress(NftError):
            if nft.run("list set bridge aetherscale ports").count('"aep') == MENDED and number > _BEFORE_THE_RULES:
                return at_s
    raise AssertionError("unreachable")


def listening() -> socket.socket:
    """Hears of each transaction of nft."""
    heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    heard.bind((0, 1 << _NFNLGRP_NFTABLES - 1))
    return heard


def heard_s(heard: socket.socket, transactions: int) -> float:
    """When so many transactions had been heard of, as `time.perf_counter` tells it."""
    while transactions > 0:
        transactions -= [kind for kind, *_ in messages(heard.recv(1 << 16))].count(NEWGEN)
    return time.perf_counter()


def waiting_turn(flusher: Flusher, text: str) -> Samples:
    """The same by a thread that knows what it will hear, and has the text of all rules at hand."""
    took_ms = []
    nft = Nftables()
    nft.run(text)
    for _ in range(TIMES):
        with listening() as heard:
            flusher.begin()
            heard_s(heard, 1)
            nft.run(text)
            took_ms.append((time.perf_counter() - flusher.flushed_s()) * 1000)
    nft.close()
    return {"ms": took_ms}


RULES_ROWS: Final = (
    Row(
        "rules",
        "rules of 1,000 VMs from nothing; of one VM more, and of one less",
        all_rules,
        (
            Target("all ms", "<=", 300),
            Target("all CPU ms", "<=", 300),
            Target("all CPU ms", "<=", 2, "by hand"),
            Target("one more ms", "<=", 3),
            Target("one more ms", "<=", 2, "by hand", more=True),
        ),
        rounds=9,
        note="From what the log has of 1,000 VMs in 20 networks. `by hand` are the same texts, made beforehand, by the "
        "same library.",
    ),
    Row(
        "groups",
        "a rule of a group, with 1,000 VMs present; and a group that 200 VMs get",
        groups,
        (
            Target("rule ms", "<=", 3),
            Target("200 attached ms", "<=", 100),
        ),
        rounds=9,
        note="By the driver, until the kernel has it. `by hand` is one rule, and one transaction of elements, in a "
        "table of its own.",
    ),
    Row(
        "mend",
        "`nft flush ruleset` by another program, until the rules of 100 VMs are whole again",
        flushes,
        (Target("ms", "<=", 100), Target("ms", "<=", 3, "by hand")),
        rounds=9,
        note="From the end of the flush until the transaction of the driver is told. `by hand` is a thread that waits "
        "for the kernel's notification, and has the text of all rules at hand.",
    ),
)
