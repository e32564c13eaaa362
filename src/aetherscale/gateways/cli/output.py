"""What a command writes: data to stdout; progress, notes and errors to stderr.

JSON where it was asked for; tables and a line that rewrites itself where a terminal shows them, drawn by Rich, which is
imported only then; plain lines elsewhere. What comes from guests or other users reaches a terminal without its control
characters.
"""

from __future__ import annotations

import codecs
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aetherscale.gateways.cli.failures import Failure

if TYPE_CHECKING:
    from rich.text import Text

_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_ -/]?.?)", re.DOTALL)
_WHOLE_ESCAPE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[^\[\]\x1b])", re.DOTALL)
_LONGEST_ESCAPE: Final = 256
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

STYLES: Final = {
    "ready": "green",
    "running": "green",
    "failed": "bold red",
    "paused": "yellow",
    "stopped": "dim",
    "deleted": "dim",
}
"""How phases look on a terminal; every other one is on its way and cyan."""


def harmless(text: str) -> str:
    """The text without escape sequences and control characters, except for line ends and tabs."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def to_json(value: Any, *, indent: bool) -> str:
    """A value as JSON, over several lines where somebody looks at it."""
    encoded = msgspec.json.encode(value)
    return (msgspec.json.format(encoded, indent=2) if indent else encoded).decode()


class Output:
    """Where a command writes. `json` is whether JSON was asked for."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.terminal = sys.stdout.isatty()
        """Whether stdout is looked at by a human."""

    # --- data ----------------------------------------------------------------------------------------------------

    def value(self, value: Any) -> None:
        """One JSON value: an object, or the array of a list."""
        print(to_json(value, indent=self.terminal))

    def json_line(self, value: Any) -> None:
        """One line of JSON Lines, at once."""
        print(to_json(value, indent=False), flush=True)

    def line(self, text: str = "") -> None:
        """One line for humans."""
        print(harmless(text) if self.terminal else text, flush=True)

    def raw(self, text: str) -> None:
        """Text of a guest, as it is; on a terminal without what would drive the terminal."""
        print(harmless(text) if self.terminal else text, end="", flush=True)

    def bytes(self) -> Bytes:
        """For bytes of a guest, in whatever pieces they come."""
        return Bytes(terminal=self.terminal)

    def raw_error(self, text: str) -> None:
        """As `raw`, to stderr."""
        print(harmless(text) if sys.stderr.isatty() else text, end="", file=sys.stderr, flush=True)

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str]], styled: int | None = None) -> None:
        """Aligned columns. `styled` is the column that has phases in it."""
        rows = list(rows)
        if self.terminal:
            self._rich_table(headers, rows, styled)
            return
        widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
        aligned = "  ".join(f"{{:<{width}}}" for width in widths)
        print("\n".join(aligned.format(*row).rstrip() for row in (headers, *rows)))

    def fields(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """One object, a field on each line; fields that are None or empty are left out."""
        shown = [(name, value) for name, value in pairs if value not in (None, "", [], {})]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            first, *others = str(value).rstrip("\n").split("\n")
            self.line(f"{name:<{width}}  {first}")
            for other in others:
                self.line(f"{'':<{width}}  {other}")

    # --- beside the data -----------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Something for a human to know that is not the data; nothing where JSON was asked for."""
        if not self.json:
            print(harmless(text), file=sys.stderr, flush=True)

    def failure(self, failure: Failure) -> None:
        """What went wrong: where, why, the end of the log that shows it, and what to type next."""
        if self.json:
            print(to_json(failure.chunk(), indent=False), file=sys.stderr)
            return
        lines = [f"{'note' if failure.is_note else 'error'}: {failure.message}"]
        if log_tail := str(failure.details.get("log-tail") or "").strip():
            lines += ["the end of its log:", *(f"  | {line}" for line in log_tail.splitlines()[-15:])]
        if failure.hint:
            lines.append(f"hint: {failure.hint}")
        print(harmless("\n".join(lines)), file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, subject: str) -> Iterator[Progress]:
        """Tell how far a long piece of work is, for as long as the block lasts."""
        if self.json:
            yield Progress(subject)
        elif sys.stderr.isatty():
            with _live_progress(subject) as progress:
                yield progress
        else:
            yield PlainProgress(subject)

    def _rich_table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], styled: int | None) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for at, header in enumerate(headers):
            table.add_column(header, no_wrap=at == 0)
        for row in rows:
            cells = [Text(harmless(cell)) for cell in row]
            if styled is not None:
                cells[styled].stylize(STYLES.get(row[styled], "cyan"))
            table.add_row(*cells)
        Console(highlight=False).print(table)


class Bytes:
    """stdout for what a guest wrote: as it is, or on a terminal as text without what would drive the terminal."""

    def __init__(self, *, terminal: bool) -> None:
        self._terminal = terminal
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        """The beginning of an escape sequence, whose end is still to come."""

    def write(self, data: bytes) -> None:
        """Show some more, at once."""
        if not self._terminal:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        text = self._held + self._decoder.decode(data)
        at = text.rfind("\x1b", -_LONGEST_ESCAPE)
        cut = at if at >= 0 and not _WHOLE_ESCAPE.match(text, at) else len(text)
        self._held = text[cut:]
        print(harmless(text[:cut]), end="", flush=True)


class Progress:
    """How far a piece of work is, told to nobody."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.phase = ""
        self._started_s = time.monotonic()

    def step(self, phase: str, detail: str = "") -> None:
        """The work has come this far."""
        self.phase = f"{phase}: {detail}" if detail else phase

    @property
    def elapsed_s(self) -> float:
        """For how long it is under way."""
        return time.monotonic() - self._started_s


class PlainProgress(Progress):
    """A line on stderr for each step."""

    def step(self, phase: str, detail: str = "") -> None:
        """As in `Progress`; the same step again is not told again."""
        before = self.phase
        super().step(phase, detail)
        if self.phase != before:
            text = harmless(f"{self.subject}: {self.phase} ({self.elapsed_s:.1f} s)")
            print(text, file=sys.stderr, flush=True)


@contextmanager
def _live_progress(subject: str) -> Iterator[Progress]:
    """One line on the terminal that rewrites itself, also while nothing is heard."""
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner

    progress = Progress(subject)
    spinner = Spinner("dots")

    def draw() -> Spinner:
        spinner.update(text=_progress_text(progress))
        return spinner

    live = Live(
        get_renderable=draw,
        console=Console(stderr=True, highlight=False),
        refresh_per_second=8,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with live:
        yield progress


def _progress_text(progress: Progress) -> Text:
    from rich.text import Text

    text = f"{progress.subject}: {progress.phase or 'asking'}  {progress.elapsed_s:.0f} s"
    return Text(harmless(text).replace("\n", " "), no_wrap=True, overflow="ellipsis")
