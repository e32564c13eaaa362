"""Figures as text, in the format that Prometheus reads: version 0.0.4 of its exposition formats."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from aetherscale.kernel.measures import Labels, Measure

PREFIX: Final = "aetherscale_"
MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
NAME: Final = re.compile(rf"\b{PREFIX}[a-z0-9_]+")
"""The names in a question of Prometheus."""
_SPECIAL: Final = re.compile(r'[\\"\n]')
_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}


def text(measures: Sequence[Measure]) -> bytes:
    """All of them; a figure without any value has its description alone."""
    return "".join(line for measure in measures for line in _lines(measure)).encode()


def _lines(measure: Measure) -> Iterator[str]:
    name = PREFIX + measure.name
    about = measure.about.replace("\\", "\\\\").replace("\n", "\\n")
    yield f"# HELP {name} {about}\n# TYPE {name} {measure.kind}\n"
    for labels, value in measure.samples:
        yield f"{name}{_labelled(labels)} {_number(value)}\n"


def _labelled(labels: Labels) -> str:
    if not labels:
        return ""
    told = ",".join(f'{name}="{_SPECIAL.sub(lambda found: _ESCAPES[found[0]], text)}"' for name, text in labels.items())
    return f"{{{told}}}"


def _number(value: float) -> str:
    """In full: a float that is rounded would make a counter of bytes stand still."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
