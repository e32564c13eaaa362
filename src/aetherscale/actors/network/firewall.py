"""The firewall as it is applied: what the kernel has, and the one way to change it.

A change is a delta from what was applied last. Where nft refuses it, somebody else has changed our tables, and they are
replaced whole, in one transaction. Before that is done for the first time it is known how an earlier process left them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from aetherscale.actors.network import flows
from aetherscale.actors.network.flows import Asked, Concerned, Flows
from aetherscale.actors.network.leases import Leases
from aetherscale.actors.network.model import chains, droplog, ruleset
from aetherscale.actors.network.model.ruleset import Ruleset
from aetherscale.actors.network.nft.nftables import Nftables, NftError
from aetherscale.actors.network.nft.structure import Structure
from aetherscale.actors.network.nft.watching import Generation
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.threads import to_the_end

log = logging.getLogger(__name__)

NOTHING: Final = ruleset.compile((), ())
SHORT: Final = 4096
"""Characters of a text that is carried out at once; longer ones are in a thread."""
_REST_S: Final = 0.5
"""How long the chains of groups are left alone before it is noted how they are: it takes 7 ms, for which nobody waits,
and many changes at once are noted once. Until then nothing is noted."""
_LOOKS: Final = 3
"""How often the tables are looked at where others change rules of the host meanwhile."""
_REMEDY: Final = "aetherscale doctor says what the host lacks for networks"
_REMOVE: Final = flows.REMOVE + "".join(
    f"add table {family} {chains.TABLE}\ndelete table {family} {chains.TABLE}\n" for family in ruleset.FAMILIES
)


def replace(
    nft: Nftables, structure: Structure, wanted: Ruleset, beside: str = "", answers: str = chains.ANSWERS_BY_MARK
) -> None:
    """Make our tables these, whatever they are; `beside` is done in the same transaction.

    NftError: nft refuses them, and all is as it was. OSError: the kernel refuses to say what there is.
    """
    try:
        text = ruleset.replace_all(wanted, answers, structure.standing())
        nft.run(ruleset.strange(structure.tables()) + text + beside)
    except NftError:
        # Something has a name of ours and is of another kind: of an older version, or of another program.
        nft.run(chains.COVER)
        try:
            text = ruleset.replace_all(wanted, answers)
            # The cover is a table that is not to stay, like any other.
            nft.run(ruleset.strange(structure.tables()) + text + beside)
        except NftError:
            nft.run(chains.UNCOVER)
            raise


class Firewall:
    """The tables of one network namespace. Changes wait for one another."""

    def __init__(self, nft: Nftables, answers: str = chains.ANSWERS_BY_MARK) -> None:
        self._nft = nft
        self._answers = answers
        self._turn = asyncio.Lock()
        self._asked = Generation()
        self._structure = Structure()
        self._flows = Flows(nft)
        self._leases = Leases()
        self._tasks = Tasks("rules")
        self._is_noted = True
        """Whether the tables have been noted as they are."""
        self._noting: asyncio.Task[None] | None = None
        """What does so, after a rest."""
        self.logs_drops = False
        """Whether the kernel is to log what it drops, whenever all is replaced."""
        self._generation = 0
        """Of all rules of the host, after the last change of ours."""
        self.applied: Ruleset | None = None
        """What the kernel has; None where that is not known."""
        self.found_lost: str | None = None
        """What another program had done to the tables before they were first replaced here, in words; "" where nothing
        of it shows; None before."""

    async def replace(self, wanted: Ruleset, *, forget: bool = False) -> None:
        """Make the tables these, whatever they are; with `forget`, that of flows too. Raises `Fault`."""
        async with self._turn:
            await self._replace(wanted, forget=forget)

    async def change(self, change: Callable[[Ruleset], Ruleset], beside: str = "") -> None:
        """Make the tables what `change` makes of those that are applied; `beside` is done in the same transaction.

        Raises `Fault`, after which all is as it was, and what `change` raises.
        """
        async with self._turn:
            before = self.applied
            wanted = change(before or NOTHING)
            if before is None:
                await self._replace(wanted, beside)
                return
            if wanted is before and not beside:
                return
            text = ruleset.delta(before, wanted) + beside
            if not text:
                self.applied = wanted
                return
            self.applied = None
            try:
                await self._carry_out(text)
            except NftError as refused:
                log.warning("the rules of networks were changed by somebody else, and are replaced: %s", refused.words)
                try:
                    await self._replace(wanted, beside)
                except Fault:
                    self.applied = before
                    raise
                return
            self.applied = wanted

    async def keep(self, concerned: Concerned, allows: Asked, ends: Asked) -> None:
        """Let the flows of these go on that are allowed and do not end, whatever the rules will say.

        Raises `Fault`, `OSError`.
        """
        if text := await asyncio.to_thread(self._flows.keep, concerned, allows, ends):
            async with self._turn:
                await self._run(lambda: self._run_part(text))

    def let_go(self, concerned: Callable[[], Concerned]) -> str:
        """What takes that back, to be done beside a change. Raises `OSError`."""
        return self._flows.let_go(concerned)

    def leased(self, taps: Sequence[str]) -> dict[str, list[str]]:
        """The addresses that were leased to the ports with these taps, which is remembered. Raises `OSError`."""
        self._leases.look()
        return {tap: [str(each) for each in found] for tap in taps if (found := self._leases.of(tap))}

    async def log_drops(self, *, logs: bool) -> None:
        """Have the kernel log what it drops of ports, or no more. Raises `Fault`, after which it does not."""
        async with self._turn:
            self.logs_drops = logs
            if self.applied is None:
                return
            try:
                await self._run(lambda: self._run_noted(droplog.text(logs=logs)))
            except Fault:
                self.logs_drops = False
                raise

    def is_in_doubt(self) -> bool:
        """Whether anybody has changed any rule of the host since we did. Raises `OSError`."""
        return self.applied is None or self._asked.now() != self._generation

    async def remove(self) -> None:
        """Ensure that there are no tables of ours. Raises `Fault`."""
        async with self._turn:
            self.applied = None
            await self._run(lambda: self._nft.run(ruleset.strange(self._structure.tables()) + _REMOVE))
            self.found_lost = self.found_lost or ""

    async def close(self) -> None:
        """Let go of nft, once it is noted how the tables are. They stay."""
        await self._tasks.close()
        if not self._is_noted:
            await self._note_now()
        self._nft.close()
        self._asked.close()
        self._structure.close()
        self._flows.close()
        self._leases.close()

    async def _replace(self, wanted: Ruleset, beside: str = "", *, forget: bool = False) -> None:
        self.applied = None
        await self._run(lambda: self._run_whole(wanted, beside, forget=forget))
        self.applied = wanted

    async def _run(self, run: Callable[[], object]) -> None:
        try:
            await to_the_end(run)
        except NftError as refused:
            said = refused.words.partition("\n")[0]
            raise Fault(f"the kernel refused the rules of networks: {said}", _REMEDY) from refused

    def _run_whole(self, wanted: Ruleset, beside: str, *, forget: bool) -> None:
        lost = self._steadily(self._structure.lost) if self.found_lost is None else self.found_lost
        self._flows.ensure(forget=forget)
        self._leases.look()
        replace(self._nft, self._structure, wanted, self._leases.text(wanted.ports) + beside, self._answers)
        self._generation = self._asked.now()
        self.found_lost = lost
        if self.logs_drops:
            with suppress(NftError):  # a kernel that logs nothing keeps everything else
                self._run_part(droplog.text(logs=True))
        self._note()

    def _run_noted(self, text: str) -> None:
        self._run_part(text)
        self._note()

    def _note(self) -> None:
        """Note how the tables are, in one more transaction."""
        self._is_noted = True
        try:
            self._nft.run(self._steadily(self._structure.note))
        except NftError:
            return  # Somebody else has removed the tables already, and that is told.
        if self._asked.now() == self._generation + 1:
            self._generation += 1

    def _steadily(self, look: Callable[[], str]) -> str:
        """What is seen at a moment; "" where others never cease to change rules of the host."""
        for _ in range(_LOOKS):
            before = self._asked.now()
            seen = look()
            if self._asked.now() == before:
                return seen
        return ""

    async def _carry_out(self, text: str) -> None:
        # What is of a few ports takes 0.3 ms, which is less than it takes another thread to wake up on a busy machine.
        if len(text) <= SHORT:
            self._run_part(text)
        else:
            await to_the_end(self._run_part, text)
        if text.startswith(ruleset.UNNOTED):
            self._note_later()

    def _note_later(self) -> None:
        self._is_noted = False
        if self._noting is None or self._noting.done():
            self._noting = self._tasks.spawn(self._note_at_rest(), "noting")

    async def _note_at_rest(self) -> None:
        while not self._is_noted:
            await asyncio.sleep(_REST_S)
            await self._note_now()

    async def _note_now(self) -> None:
        async with self._turn:
            try:
                await to_the_end(self._note)
            except OSError as failure:
                log.warning("it cannot be noted how the rules of networks are: %s", failure)

    def _run_part(self, text: str) -> None:
        self._nft.run(text)
        self._generation = self._asked.now()
