"""The output of a command: data to stdout; progress, notes and errors to stderr.

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
from typing import TYPE_CHECKING, Any, Final, TextIO

import msgspec
from msgspec import Struct

from aetherscale.gateways.cli.failures import Failure

if TYPE_CHECKING:
    from rich.text import Text

MEASURE_S: Final = 10.0
"""How often a line says how far a long step is, where lines are not rewritten."""
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_ -/]?.?)", re.DOTALL)
_WHOLE_ESCAPE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[^\[\]\x1b])", re.DOTALL)
_LONGEST_ESCAPE: Final = 256
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

LEAST_TEXT: Final = 40
"""Where a terminal has less room for text, it breaks the lines itself."""

_BYTE: Final = re.compile("[\udc80-\udcff]")
_BYTE_IN_REPR: Final = re.compile(r"\\udc([89a-f][0-9a-f])")
_COMMAND: Final = "aetherscale "
_ERROR: Final = "error: "
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]")


def harmless(text: str) -> str:
    """The text without escape sequences and control characters, except for line ends and tabs."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def to_json(value: Any, *, indent: bool) -> str:
    """A value as JSON, over several lines on a terminal; bytes that are not UTF-8 are shown as `\\xff`.

    JSON is UTF-8 whatever the locale; where that is another encoding, it is written with escapes, which are the same.
    """
    try:
        encoded = msgspec.json.encode(value)
    except UnicodeEncodeError:
        encoded = msgspec.json.encode(_utf8(msgspec.to_builtins(value)))
    text = (msgspec.json.format(encoded, indent=2) if indent else encoded).decode()
    return text if _speaks_utf8(sys.stdout) else _NOT_ASCII.sub(_escaped, text)


def in_utf8(text: str) -> str:
    """The text with the bytes that are no UTF-8, as the names of files can have them, as `\\xff`."""
    return _BYTE_IN_REPR.sub(r"\\x\1", _BYTE.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text))


def _utf8(value: Any) -> Any:
    match value:
        case str():
            return in_utf8(value)
        case dict():
            return {_utf8(name): _utf8(member) for name, member in value.items()}
        case list() | tuple():
            return [_utf8(member) for member in value]
        case _:
            return value


def _speaks_utf8(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def _escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def _broken(text: str, hang: int) -> str:
    """A line for a terminal, broken between words; what follows the first line is indented."""
    import shutil
    import textwrap

    width = max(shutil.get_terminal_size().columns - 1, hang + LEAST_TEXT)
    return "\n".join(
        textwrap.wrap(text, width, subsequent_indent=" " * hang, break_on_hyphens=False, break_long_words=False)
    )


def _fitted(line: str, hang: int) -> str:
    """The same; a line that is short stays as it is, and one with a command in it is one line, to be copied.

    An error names the command that was typed, and none to be copied.
    """
    is_copied = _COMMAND in line and not line.startswith(_ERROR)
    return line if len(line) <= LEAST_TEXT or is_copied else _broken(line, hang)


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

    def paragraph(self, text: str, hang: int = 0) -> None:
        """One line for humans; on a terminal broken between words, with what follows the first line indented."""
        if not self.terminal:
            self.line(text)
            return
        self.line(_broken(text, hang))

    def raw(self, text: str) -> None:
        """Text of a guest, as it is; on a terminal without what would drive the terminal."""
        print(harmless(text) if self.terminal else text, end="", flush=True)

    def bytes(self) -> Bytes:
        """For bytes of a guest, in whatever pieces they come."""
        return Bytes(terminal=self.terminal)

    def raw_error(self, text: str) -> None:
        """As `raw`, to stderr."""
        print(harmless(text) if sys.stderr.isatty() else text, end="", file=sys.stderr, flush=True)

    def table(
        self,
        headers: Sequence[str],
        rows: Iterable[Sequence[str]],
        styled: int | None = None,
        layout: Layout | None = None,
    ) -> None:
        """Aligned columns: on a terminal fitted to its width, elsewhere and where `wide` was asked for as they are.

        A terminal that is too narrow for what was asked for gets a field on each line. `styled` is the column that has
        phases in it.
        """
        layout = layout or Layout()
        shown = [[harmless(cell) if self.terminal else cell for cell in row] for row in rows]
        if self.terminal and not layout.wide:
            from aetherscale.gateways.cli.tables import draw

            draw(headers, shown, styled, layout)
            return
        if self.terminal:
            from aetherscale.gateways.cli.tables import is_too_wide

            if is_too_wide(headers, shown):
                self._stacked(headers, shown)
                return
        widths = [max(map(len, column)) for column in zip(headers, *shown, strict=True)]
        aligned = "  ".join(f"{{:<{width}}}" for width in widths)
        print("\n".join(aligned.format(*row).rstrip() for row in (headers, *shown)))

    def _stacked(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows one below the other, a field on each line."""
        for number, row in enumerate(rows):
            if number:
                self.line()
            self.fields(zip(headers, row, strict=True))

    def fields(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """One object, a field on each line; fields that are None or empty are left out."""
        shown = [(name, value) for name, value in pairs if value not in (None, "", [], {}, ())]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            first, *others = str(value).rstrip("\n").split("\n")
            for line in (f"{name:<{width}}  {first}", *(f"{'':<{width}}  {other}" for other in others)):
                self.line(_fitted(line, width + 2) if self.terminal else line)

    # --- beside the data -----------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Something for a human to know that is not the data; nothing where JSON was asked for."""
        if not self.json:
            self._beside(text)

    def caution(self, text: str) -> None:
        """That what was asked for is not what it may be taken for: on stderr, also where JSON was asked for."""
        self._beside(f"note: {text}")

    def _beside(self, text: str) -> None:
        text = harmless(text)
        if sys.stderr.isatty():
            text = "\n".join(_fitted(line, 4) for line in text.split("\n"))
        print(text, file=sys.stderr, flush=True)

    def failure(self, failure: Failure) -> None:
        """A failure: where, why, the end of the log that shows it, and what to type next."""
        if self.json:
            print(to_json(failure.chunk(), indent=False), file=sys.stderr)
            return
        lines = [f"{'note: ' if failure.is_note else _ERROR}{in_utf8(failure.shown or failure.message)}"]
        if log_tail := str(failure.details.get("log-tail") or "").strip():
            lines += ["the end of its log:", *(f"  | {line}" for line in log_tail.splitlines()[-15:])]
        if failure.hint:
            lines.append(f"hint: {in_utf8(failure.hint)}")
        self._beside("\n".join(lines))

    @contextmanager
    def progress(self, subject: str) -> Iterator[Progress]:
        """Show the progress of long work, for as long as the block lasts."""
        if self.json:
            yield Progress(subject)
        elif sys.stderr.isatty():
            with _live_progress(subject) as progress:
                yield progress
        else:
            yield PlainProgress(subject)


class Layout(Struct, frozen=True):
    """The layout of columns, by their headers, where a terminal is too narrow for all of them."""

    fold: Sequence[str] = ()
    """Names, which go on in the next line rather than be cut."""
    spare: Sequence[str] = ()
    """May be left out, the first one first."""
    cut: str = ""
    """Gets what is left of the line."""
    wide: bool = False
    """Whether all is to be shown, however wide the terminal is."""


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
        print(self._text(data), end="", flush=True)

    def shown(self, data: bytes) -> bytes:
        """What is to be written of some more, by whoever writes it."""
        return self._text(data).encode(errors="replace") if self._terminal else data

    def _text(self, data: bytes) -> str:
        text = self._held + self._decoder.decode(data)
        at = text.rfind("\x1b", -_LONGEST_ESCAPE)
        cut = at if at >= 0 and not _WHOLE_ESCAPE.match(text, at) else len(text)
        self._held = text[cut:]
        return harmless(text[:cut])


class Progress:
    """The progress of work, which is not shown."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.phase = ""
        self._started_s = time.monotonic()

    def step(self, phase: str, detail: str = "") -> None:
        """The work has come this far."""
        self.phase = f"{phase}: {detail}" if detail else phase

    def measure(self, phase: str, amount: str) -> None:
        """The work is at a phase that was told before or is new, and there this far."""
        self.step(phase, amount)

    @property
    def elapsed_s(self) -> float:
        """For how long it is under way."""
        return time.monotonic() - self._started_s


class PlainProgress(Progress):
    """A line on stderr for each step, and one now and then for how far a long one is."""

    def __init__(self, subject: str) -> None:
        super().__init__(subject)
        self._measured: tuple[str, float] = ("", 0.0)

    def measure(self, phase: str, amount: str) -> None:
        """As in `Progress`; not more often than every `MEASURE_S`."""
        if phase != self._measured[0] or self.elapsed_s - self._measured[1] >= MEASURE_S:
            self._measured = phase, self.elapsed_s
            self.step(phase, amount)

    def step(self, phase: str, detail: str = "") -> None:
        """As in `Progress`; the same step is not shown twice."""
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
    spinner = Spinner("dots" if _speaks_utf8(sys.stderr) else "line")

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
