"""Takes the questions out of a console's history before it is shown on a terminal.

A guest may ask the terminal where its cursor is, or what it is called, and the terminal answers as if it were typed.
When such a question is read later, in the history, the terminal answers once more, into a guest that did not ask. What
the guest writes from then on is left as it is. Pure; the parser is that of terminals themselves (VT500: CAN and SUB end
a sequence, ESC begins another, other control characters inside one are carried out).
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

ESC: Final = 0x1B
ENQ: Final = 0x05
BEL: Final = 0x07
C1_LEAD: Final = 0xC2
"""The first byte, in UTF-8, of the control characters U+0080 to U+009F: an ESC and its letter in one."""
_ABORTS: Final = (0x18, 0x1A)

_ASKING_CSI: Final = re.compile(
    rb"[0-?]*c"  # DA: what are you?
    rb"|[^>]?[0-?]*n"  # DSR: how are you, where is the cursor? (with > it sets modified keys)
    rb"|[0-?]*x"  # DECREQTPARM
    rb"|>[0-?]*q"  # XTVERSION
    rb"|\?[0-?]*[umS]"  # the keyboard's protocol and modifiers, the graphics' limits
    rb"|(?:1[13-9]|2[01])[0-?]*t"  # the window's state, place, size, title
    rb"|[0-?]*\$[pwu]|[0-?]*[*&'#][yu|RS]"  # DECRQM, DECRQPSR, DECRQTSR, DECRQCRA, DECRQLP and others
)
_ASKING_OSC: Final = re.compile(rb"(?:60|61|1337)(?:;.*)?|.*[;=]\?(?:;.*)?", re.DOTALL)
"""Colours, the clipboard, allowed operations; iTerm2's own, of which many report."""


class _State(Enum):
    TEXT = "text"
    LEAD = "the lead byte of two that may be a control character"
    ESCAPE = "after ESC"
    CSI = "control sequence"
    STRING = "OSC, DCS, SOS, PM or APC"
    STRING_LEAD = "the same, after a lead byte"
    STRING_ESCAPE = "the same, after ESC"


class History:
    """The output of a line of which the first `length_bytes` are history. Keeps no more than those."""

    def __init__(self, length_bytes: int) -> None:
        self._left_bytes = length_bytes
        self._state = _State.TEXT
        self._sequence = bytearray()
        """The bytes that may become a question, as they came."""
        self._content = bytearray()
        """The same without its introducer, and without control characters that are carried out meanwhile."""
        self._is_osc = False

    def feed(self, data: bytes) -> bytes:
        """The next bytes, as they are to be shown. Where the history ends in a sequence, the rest of it is live."""
        past, live = data[: self._left_bytes], data[self._left_bytes :]
        self._left_bytes -= len(past)
        shown = bytearray()
        for byte in past:
            self._take(byte, shown)
        if not self._left_bytes:
            shown += self._sequence
            self._forget()
        return bytes(shown) + live

    def _take(self, byte: int, shown: bytearray) -> None:
        match self._state:
            case _State.TEXT:
                self._text(byte, shown)
            case _State.LEAD:
                if 0x80 <= byte <= 0x9F:
                    self._sequence.append(byte)
                    self._introduced(byte - 0x40, shown)
                else:
                    self._end(shown, kept=0xA0 <= byte <= 0xBF, last=byte if byte >= 0x80 else None)
                    if byte < 0x80 or byte >= 0xC0:
                        self._text(byte, shown)
            case _:
                self._within(byte, shown)

    def _text(self, byte: int, shown: bytearray) -> None:
        if byte in (ESC, C1_LEAD):
            self._forget()
            self._sequence.append(byte)
            self._state = _State.ESCAPE if byte == ESC else _State.LEAD
        elif byte != ENQ:
            shown.append(byte)

    def _within(self, byte: int, shown: bytearray) -> None:
        """A byte of a sequence. One that is aborted has no effect on a terminal, and is not shown."""
        in_string = self._state in (_State.STRING, _State.STRING_LEAD, _State.STRING_ESCAPE)
        if byte in _ABORTS:
            self._forget()
        elif in_string:
            self._string(byte, shown)
        elif byte == ESC:
            self._text(byte, shown)
        elif byte < 0x20:
            if byte != ENQ:
                self._sequence.append(byte)
        elif byte >= 0x7F:
            self._forget()
            if byte > 0x7F:
                self._text(byte, shown)
        else:
            self._sequence.append(byte)
            self._content.append(byte)
            if self._state is _State.CSI:
                if byte >= 0x40:
                    self._end(shown, kept=not _ASKING_CSI.fullmatch(self._content))
            elif byte >= 0x30:
                self._introduced(byte, shown)

    def _introduced(self, letter: int, shown: bytearray) -> None:
        """ESC and a letter, or the one character that stands for both."""
        plain = len(self._content) <= 1
        self._content.clear()
        if plain and letter == ord("["):
            self._state = _State.CSI
        elif plain and letter in b"]PX^_":
            self._state, self._is_osc = _State.STRING, letter == ord("]")
        else:
            self._end(shown, kept=not (plain and letter == ord("Z")))  # DECID, the oldest question

    def _string(self, byte: int, shown: bytearray) -> None:
        """A byte of a string; those that are not OSC ask, or draw what no history needs."""
        kept = self._is_osc and not _ASKING_OSC.fullmatch(self._content)
        was, self._state = self._state, _State.STRING
        if was is _State.STRING_ESCAPE and byte != ord("\\"):
            self._text(ESC, shown)
            self._within(byte, shown)
        elif (
            was is _State.STRING_ESCAPE
            or (was is _State.STRING_LEAD and byte == 0x9C)
            or (self._is_osc and byte == BEL)
        ):
            self._end(shown, kept=kept, last=byte)
        else:
            self._sequence.append(byte)
            if byte == ESC:
                self._state = _State.STRING_ESCAPE
            elif byte == C1_LEAD:
                self._state = _State.STRING_LEAD
            elif byte >= 0x20:
                self._content.append(byte)

    def _end(self, shown: bytearray, *, kept: bool, last: int | None = None) -> None:
        if kept:
            shown += self._sequence
            if last is not None:
                shown.append(last)
        self._forget()

    def _forget(self) -> None:
        self._state = _State.TEXT
        self._sequence.clear()
        self._content.clear()
