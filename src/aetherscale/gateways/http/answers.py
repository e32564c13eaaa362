"""The historian's side: each question about the past as a call of `debugger/moves.py`, and its answer as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import msgspec

from aetherscale.debugger.changes import Wanted
from aetherscale.debugger.moves import Moves
from aetherscale.debugger.past import PastLog, explained, moment_of
from aetherscale.gateways.http.questions import MAX_ANSWER_BYTES, Answer, Question, refusal_of, unless_refused
from aetherscale.kernel.errors import Reason, Refused

_LATER_US: Final = timedelta(hours=36) // timedelta(microseconds=1)
"""Words like `16:00`, `5m` or `today` mean something else by then."""


class Answers:
    """Answers questions about one log in this process: the inside of the historian, and `Asked` where that is one."""

    def __init__(self, log: PastLog, tenant: str) -> None:
        self._log, self._moves = log, Moves(log, tenant)

    async def ask(self, name: str, **options: Any) -> Answer:
        """As in `Asked`."""
        return unless_refused(await self.answer(Question(name, options)))

    async def close(self) -> None:
        """As in `Asked`: the log is somebody else's."""

    async def answer(self, question: Question) -> Answer:
        """The answer to a question. Raises what is a mistake of ours."""
        try:
            with explained():
                answer: Answer = await getattr(self, f"_{question.name}")(**question.options)
        except Refused as refused:
            return refusal_of(refused)
        size = len(answer.body) + sum(len(body) for _, _, body in answer.changes)
        if size > MAX_ANSWER_BYTES:
            return refusal_of(
                Refused(
                    Reason.TOO_LARGE,
                    f"the answer has {size} bytes, expected at most {MAX_ANSWER_BYTES}",
                    remedy="ask for less: one kind, a limit, a shorter span",
                )
            )
        return answer

    async def _position(self, at: str, now_us: int, field: str) -> Answer:
        try:
            seq, time_us = moment_of(at, now_us)
            position = await self._log.position(at, now_us)
        except Refused as refused:
            refused.field = field
            raise
        if time_us is None:
            return Answer(position=seq, is_fixed=True)
        # A later event is there, so none that comes can be of before; and the words are those of one moment.
        is_fixed = position < await self._log.head() and moment_of(at, now_us + _LATER_US)[1] == time_us
        return Answer(position=position, is_fixed=is_fixed)

    async def _state(self, position: int, kinds: list[str], limit: int | None) -> Answer:
        return _answer(await self._moves.state(position, kinds, limit), position)

    async def _diff(self, before: int, after: int) -> Answer:
        return _answer(await self._moves.diff(before, after), after)

    async def _object(self, kind: str, reference: str, position: int) -> Answer:
        return _answer(await self._moves.object(kind, reference, position), position)

    async def _why(self, kind: str, reference: str, position: int, whole: bool) -> Answer:
        return _answer(await self._moves.why(kind, reference, position, whole=whole), position)

    async def _changes(self, after: int, until: int, wanted: Mapping[str, list[str]]) -> Answer:
        page = await self._moves.changes(after, until, _wanted(wanted))
        return _answer(page, page.until)

    async def _told(self, after: int, until: int, wanted: Mapping[str, list[str]]) -> Answer:
        page = await self._moves.changes(after, until, _wanted(wanted))
        told = tuple((each.seq, each.type, msgspec.json.encode(each)) for each in page.changes)
        return Answer(position=page.until, changes=told)

    async def _density(self, after: int, until: int, columns: int) -> Answer:
        return _answer(await self._moves.density(after, until, columns), until)


def _answer(value: Any, position: int) -> Answer:
    return Answer(msgspec.json.encode(value), position)


def _wanted(words: Mapping[str, list[str]]) -> Wanted:
    return Wanted(**{name: frozenset(each) for name, each in words.items()})
