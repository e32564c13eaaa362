"""Draws docs/states.md: the phases of aggregates and the transitions between them, from the tables of components.

The drawings are Mermaid, which the pages of Git forges render. `aetherscale.docs` writes the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from aetherscale.kernel.lifecycle import Lifecycle, Transition
from aetherscale.runtime.component import Component

HEAD: Final = """\
An aggregate is in one phase at a time. The phase alone says which effect is pending on the host, and only an event
changes it. Users are shown fewer words than there are phases. A transition that no table on this page has does not
happen: a test brings each aggregate to every state that it can come to."""


def lines(components: Sequence[Component[Any, Any]], made: str) -> Iterator[str]:
    """The page; `made` says that it is made from the code."""
    yield from ("# States", "", made, "", HEAD)
    for component in components:
        if component.lifecycle is not None:
            yield from ("", f"## {component.identity.noun}")
            yield from _life(component.lifecycle)


def _life(life: Lifecycle) -> Iterator[str]:
    yield from ("", "| phase | shown as | pending effect | about |", "| --- | --- | --- | --- |")
    for name, phase in life.phases.items():
        pending = f"`{phase.pending}`" if phase.pending else "–"
        yield f"| `{name}` | `{phase.shown}` | {pending} | {phase.about} |"
    yield from ("", "In the words that users are shown:", "")
    yield from _drawing(_outline(life), labelled=False)
    for part, phases in life.parts.items():
        ours = [
            each
            for each in life.transitions
            if each.source in phases or (each.source is None and each.target in phases)
        ]
        yield from ("", f"### {part}", "")
        yield from _drawing(ours, labelled=True)
        yield from ("", "| in phase | event | leads to |", "| --- | --- | --- |")
        yield from _rows(life, ours)


def _outline(life: Lifecycle) -> Iterator[Transition]:
    for each in life.transitions:
        source = each.source and life.phases[each.source].shown
        yield Transition(source, each.event, life.phases[each.target].shown)


def _drawing(transitions: Iterator[Transition] | Sequence[Transition], *, labelled: bool) -> Iterator[str]:
    """A Mermaid diagram, without the events that leave the phase as it is: one arrow from phase to phase."""
    arrows: dict[tuple[str | None, str], list[str]] = {}
    for each in transitions:
        if each.source != each.target:
            arrows.setdefault((each.source, each.target), []).append(each.event)
    yield from ("```mermaid", "stateDiagram-v2")
    named = dict.fromkeys(phase for arrow in arrows for phase in arrow if phase is not None)
    yield from (f'    state "{phase}" as {_identifier(phase)}' for phase in named if "-" in phase)
    for (source, target), by in arrows.items():
        label = f": {', '.join(by)}" if labelled else ""
        yield f"    {_identifier(source) if source else '[*]'} --> {_identifier(target)}{label}"
    yield "```"


def _rows(life: Lifecycle, transitions: Sequence[Transition]) -> Iterator[str]:
    targets: dict[tuple[str | None, str], list[str]] = {}
    for each in transitions:
        targets.setdefault((each.source, each.event), []).append(each.target)
    order = [None, *life.phases]
    for (source, event), ends in sorted(targets.items(), key=lambda row: order.index(row[0][0])):
        yield f"| {f'`{source}`' if source else '(none yet)'} | `{event}` | {' or '.join(f'`{end}`' for end in ends)} |"


def _identifier(phase: str) -> str:
    return phase.replace("-", "_")
