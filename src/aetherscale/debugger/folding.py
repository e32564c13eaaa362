"""The fold between keyframes: registries that have only what is not deleted, and the counts of milestones. Pure.

An event about an object that was left out, as a stray that is found of a deleted VM, has its stream read first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from aetherscale.debugger.keyframes import Counts, Milestone, Registries
from aetherscale.kernel.messages import Recorded, split_stream, stream_name
from aetherscale.kernel.registry import OURSELVES, Aggregate, Kind, advance, advance_by, apply, by_stream

Departed = dict[str, dict[str, Aggregate[Any]]]
Passing = tuple[Recorded, Aggregate[Any] | None, Aggregate[Any] | None]
"""An event, and the object that it is about before and after it; None for names and uses."""


class Fold:
    """Registries on their way through the log."""

    def __init__(
        self,
        position: int,
        kinds: Mapping[str, Kind[Any]],
        registries: Registries,
        departed: Departed | None,
        stream: Callable[[str, int], list[Recorded]],
    ) -> None:
        self.position = position
        self.registries = registries
        self.departed = departed
        """Everything that is deleted, by kind and id; None where it is not asked for."""
        self._kinds = kinds
        self._stream = stream

    def run(self, events: Sequence[Recorded]) -> None:
        """Fold the next events, each stream by itself, which is quicker than one event after the other."""
        kinds, registries = self._kinds, self.registries
        for stream, own in by_stream(events).items():
            name, aggregate_id = split_stream(stream)
            kind = kinds.get(name)
            if kind is None:
                for recorded in own:
                    for each in kinds.values():
                        apply(each, registries[each.name], recorded)
            else:
                known = self._known(kind, aggregate_id, own[0].version)
                registries[name].aggregates[aggregate_id] = advance_by(kind, known, own, aggregate_id)
        if events:
            self.position = events[-1].seq

    def run_counting(self, events: Sequence[Recorded], counting: Counting) -> None:
        """Fold the next events, and count each."""
        for recorded, before, after in self.passing(events):
            counting.count(before, after, recorded)

    def passing(self, events: Sequence[Recorded]) -> Iterator[Passing]:
        """Fold the next events one by one; each with the object that it is about before and after it."""
        kinds, registries = self._kinds, self.registries
        for recorded in events:
            name, aggregate_id = split_stream(recorded.stream)
            kind = kinds.get(name)
            before = after = None
            if kind is None:
                for each in kinds.values():
                    apply(each, registries[each.name], recorded)
            else:
                before = self._known(kind, aggregate_id, recorded.version)
                after = advance(kind, before, recorded, aggregate_id)
                registries[name].aggregates[aggregate_id] = after
            self.position = recorded.seq
            yield recorded, before, after

    def depart(self) -> Mapping[str, list[Aggregate[Any]]]:
        """Take away what is deleted, the names that are free and the uses that have ended; what is deleted."""
        gone = {}
        for name, registry in self.registries.items():
            gone[name] = [each for each in registry.aggregates.values() if each.state.phase == "deleted"]
            for aggregate in gone[name]:
                del registry.aggregates[aggregate.id]
                if self.departed is not None:
                    self.departed[name][aggregate.id] = aggregate
            registry.holders = {key: holder for key, holder in registry.holders.items() if holder.owner is not None}
            registry.uses = {key: uses for key, uses in registry.uses.items() if uses.users}
        return gone

    def _known(self, kind: Kind[Any], aggregate_id: str, version: int) -> Aggregate[Any] | None:
        """An object before its event of a version: also one that was left out for being deleted."""
        aggregate = self.registries[kind.name].aggregates.get(aggregate_id)
        if aggregate is not None or version == 1:
            return aggregate
        for recorded in self._stream(stream_name(kind.name, aggregate_id), version):
            aggregate = advance(kind, aggregate, recorded, aggregate_id)
        return aggregate


class Counting:
    """Milestones on their way through the log."""

    def __init__(self, milestone: Milestone) -> None:
        self._greatest_us, self._latest = milestone.greatest_us, milestone.latest
        counts = milestone.counts
        self._asked, self._happened, self._failed = counts.asked, counts.happened, counts.failed

    @property
    def milestone(self) -> Milestone:
        """What is known up to here."""
        return Milestone(self._greatest_us, self._latest, Counts(self._asked, self._happened, self._failed))

    def count(self, before: Aggregate[Any] | None, after: Aggregate[Any] | None, recorded: Recorded) -> None:
        """One event more, with the object that it is about before and after it; None for names and uses."""
        if recorded.time_us >= self._greatest_us:
            self._greatest_us, self._latest = recorded.time_us, recorded.seq
        if after is None:
            return
        failure = getattr(after.state, "failure", None)
        if failure is not None and (before is None or failure is not getattr(before.state, "failure", None)):
            self._failed += 1
        elif recorded.actor.startswith(OURSELVES):
            self._happened += 1
        else:
            self._asked += 1
