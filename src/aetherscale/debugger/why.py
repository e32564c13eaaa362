"""Why an object is in the state that it is in: the requests and the other events that led there, in sentences.

A *chapter* is a request, or an event without one, with its consequences. The answer has the chapter that requested the
object, the last request with those still under way when it came, and the events without a request after that. Chapters
without an effect on the present state are left out unless everything is wanted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Final, Literal

from msgspec import Struct, structs
from msgspec.structs import replace

from aetherscale.debugger.past import Past, PastLog
from aetherscale.kernel.messages import Recorded, event_id, split_stream, stream_name
from aetherscale.kernel.registry import Aggregate, Kind
from aetherscale.kernel.times import to_rfc3339

LAST_TURNS: Final = 3
"""How many events without a request are shown after the last request."""
CAUSE_LIMIT: Final = 16
"""How many requests that led to one another are shown."""
MOST_DIGITS: Final = 18


class Sentence(Struct, frozen=True, rename="kebab"):
    """One event in words."""

    seq: int
    time: str
    text: str


class Chapter(Struct, frozen=True, rename="kebab"):
    """A request or a turn, with all that came of it."""

    kind: str
    id: str
    role: Literal["request", "turn"]
    actor: str
    """Who asked; for a turn the component that saw it."""
    command_id: str
    correlation_id: str
    cause: str | None
    """The causation id of a request that was made because of something else."""
    sentences: list[Sentence]
    complete: bool = True
    """Whether no sentence of it is left out."""


class Mention(Struct, frozen=True, rename="kebab"):
    """Another object that this one depends on."""

    kind: str
    id: str
    name: str
    text: str


class Why(Struct, frozen=True, rename="kebab"):
    """The answer. `left_out` counts the events that are not shown."""

    kind: str
    id: str
    name: str
    position: int
    view: Any
    summary: str
    chapters: list[Chapter]
    left_out: int
    mentions: list[Mention]


def chapters(kind: Kind[Any], recorded: Iterable[Recorded]) -> list[Chapter]:
    """The whole history of one stream, as chapters."""
    told: list[Chapter] = []
    state: Any = None
    for each in recorded:
        words = kind.descriptions.describe(state, each.event)
        sentence = Sentence(each.seq, to_rfc3339(each.time_us), words.text)
        if not told or words.role != "consequence":
            told.append(_chapter(kind, each, "turn" if words.role == "observation" else "request", sentence))
        else:
            told[-1].sentences.append(sentence)
        state = kind.evolve(state, each.event, each.time_us)
    return told


def relevant(history: Sequence[Chapter]) -> tuple[list[Chapter], int]:
    """The chapters that led to the present state, and how many events are left out."""
    if not history:
        return [], 0
    last = max((at for at, chapter in enumerate(history) if chapter.role == "request"), default=0)
    first = last
    while first > 0 and _unfinished(history[first - 1]):
        first -= 1
    turns = list(range(last + 1, len(history)))[-LAST_TURNS:]
    kept = [history[at] for at in (*range(first, last + 1), *turns)]
    if first > 0:
        origin = history[0]
        kept.insert(0, replace(origin, sentences=origin.sentences[:1], complete=len(origin.sentences) == 1))
    total = sum(len(chapter.sentences) for chapter in history)
    return kept, total - sum(len(chapter.sentences) for chapter in kept)


async def explain(log: PastLog, past: Past, kind: Kind[Any], aggregate: Aggregate[Any], *, whole: bool) -> Why:
    """The answer for one object as of a moment; with `whole` nothing of its history is left out."""
    recorded = [each for each in await log.stream(stream_name(kind.name, aggregate.id)) if each.seq <= past.position]
    history = chapters(kind, recorded)
    told, left_out = (history, 0) if whole else relevant(history)
    causes = [cause for chapter in told for cause in await _causes(log, chapter)]
    return Why(
        kind=kind.name,
        id=aggregate.id,
        name=aggregate.state.name,
        position=past.position,
        view=past.view(kind.name, aggregate),
        summary=kind.descriptions.summarize(aggregate.state),
        chapters=[*causes, *told],
        left_out=left_out,
        mentions=[mention async for mention in _mentions(log, past, recorded[0], kind, aggregate)],
    )


async def _causes(log: PastLog, chapter: Chapter) -> list[Chapter]:
    """What a request was made because of, in other streams of this log: the first cause first."""
    found: list[Chapter] = []
    for _ in range(CAUSE_LIMIT):
        event = await _event_of(log, chapter.cause)
        known = {kind.name: kind for kind in log.kinds}
        if event is None or (kind := known.get(split_stream(event.stream)[0])) is None:
            break
        told = next(
            (
                each
                for each in chapters(kind, await log.stream(event.stream))
                if any(sentence.seq == event.seq for sentence in each.sentences)
            ),
            None,
        )
        if told is None or told.id == chapter.id:
            break
        upto = [sentence for sentence in told.sentences if sentence.seq <= event.seq]
        chapter = replace(told, sentences=upto, complete=len(upto) == len(told.sentences))
        found.insert(0, chapter)
    return found


async def _event_of(log: PastLog, cause: str | None) -> Recorded | None:
    """The event of this log that a causation id names; None where it is something else."""
    tail = (cause or "").rpartition(".")[2]
    event = await log.event(int(tail)) if tail.isascii() and tail.isdigit() and len(tail) < MOST_DIGITS else None
    if event is None or event_id(event.node, event.epoch, event.seq) != cause:
        return None
    return event


def _fields(of: Struct, name: str) -> Iterator[str]:
    """The values of all fields of this name: of an event, of its parts, and of those in lists."""
    for field, value in structs.asdict(of).items():
        if field == name and value is not None:
            yield str(value)
        for part in value if isinstance(value, list) else (value,):
            if isinstance(part, Struct):
                yield from _fields(part, name)


def _used(past: Past, other: Kind[Any], origin: Recorded, aggregate: Aggregate[Any]) -> Iterator[str]:
    """The ids of the objects of another kind that this one uses; of a deleted one those that it was requested with."""
    if aggregate.state.phase == "deleted":
        yield from dict.fromkeys(_fields(origin.event, f"{other.name}_id"))
        return
    registry = past.registries[other.name]
    yield from (each for each in registry.aggregates if aggregate.id in registry.uses_of(other.name, each).users)


async def _mentions(
    log: PastLog, past: Past, origin: Recorded, kind: Kind[Any], aggregate: Aggregate[Any]
) -> AsyncIterator[Mention]:
    """The objects of other kinds that this one uses, each with the last turn it has taken since this one was requested:
    what was lost of a network may be what this one has there.
    """
    others = (other for other in past.kinds if other.name != kind.name)
    for other, mentioned in [(each, id_) for each in others for id_ in _used(past, each, origin, aggregate)]:
        used = past.registries[other.name].aggregates.get(mentioned)
        if used is None:
            continue
        recorded = await log.stream(stream_name(other.name, used.id))
        first, *later = chapters(other, [each for each in recorded if each.seq <= past.position])
        text = f"{other.descriptions.summarize(used.state)}; {first.actor} {first.sentences[0].text}"
        turns = [each.sentences for each in later if each.role == "turn" and each.sentences[0].seq > origin.seq]
        if turns:
            text += f"; at {turns[-1][0].time} {'; '.join(sentence.text for sentence in turns[-1])}"
        yield Mention(other.name, used.id, used.state.name, text)


def _chapter(kind: Kind[Any], recorded: Recorded, role: Literal["request", "turn"], sentence: Sentence) -> Chapter:
    return Chapter(
        kind=kind.name,
        id=recorded.stream.partition("-")[2],
        role=role,
        actor=recorded.actor,
        command_id=recorded.command_id,
        correlation_id=recorded.correlation_id,
        cause=recorded.causation_id if role == "request" else None,
        sentences=[sentence],
    )


def _unfinished(chapter: Chapter) -> bool:
    """Whether nothing had come of a request when the next one was made."""
    return chapter.role == "request" and len(chapter.sentences) == 1
