"""A disk that loses power: what it may hold then of all that was written and not synced. Pure.

    what was done, in order ─▶ Disk.do ─▶ after_power_cut(chance) ─▶ the files of a directory

What the model allows is more than any file system does, since a store has to live with all of them. Until a file is
synced each write to it may be on the disk or not, in whole or in any of its sectors of 512 bytes, whatever became of
the writes before it; so may each change of its size, and what a file has grown by may be zeros or rubbish. Until the
directory is synced each creation, renaming and removal may have happened or not; syncing the file does not help. A
sector is old or new, never a mixture: disks promise that much (NVMe calls it AWUPF, SQLite does without).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final, NamedTuple

SECTOR_BYTES: Final = 512


class Write(NamedTuple):
    """Bytes were written to a file; files have numbers, since names move."""

    file: int
    offset: int
    data: bytes


class Resize(NamedTuple):
    """A file was cut off or made longer."""

    file: int
    size: int


class Sync(NamedTuple):
    """A file was synced."""

    file: int


class Names(NamedTuple):
    """Names of the directory were given to files, or taken away (None), in one step."""

    given: tuple[tuple[str, int | None], ...]


class SyncDirectory(NamedTuple):
    """The directory was synced."""


class Said(NamedTuple):
    """The process told somebody something: from now on that has to be true."""

    text: str


Change = Write | Resize
Step = Change | Sync | Names | SyncDirectory | Said

Keep = Callable[[int, int], bool]
"""Whether a sector (the second) of a change (the first, counted from the last sync) is on the disk."""


@dataclass
class _File:
    durable: bytes = b""
    changes: list[Change] = field(default_factory=list)

    def sizes(self) -> list[int]:
        """The sizes that it has had since it was synced; the last one is what the process sees."""
        sizes = [len(self.durable)]
        for change in self.changes:
            end = change.size if isinstance(change, Resize) else max(sizes[-1], change.offset + len(change.data))
            sizes.append(end)
        return sizes

    def content(self, keep: Keep, filler: Callable[[int], bytes] = bytes) -> bytes:
        """With some of the changes; `filler` makes what no kept write has filled."""
        content = bytearray(self.durable)
        for number, change in enumerate(self.changes):
            if isinstance(change, Resize):
                if keep(number, 0):
                    _set_size(content, change.size, filler)
                continue
            end = change.offset + len(change.data)
            for sector in range(change.offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)):
                if keep(number, sector):
                    first = max(change.offset, sector * SECTOR_BYTES)
                    last = min(end, (sector + 1) * SECTOR_BYTES)
                    _set_size(content, max(len(content), last), filler)
                    content[first:last] = change.data[first - change.offset : last - change.offset]
        return bytes(content)

    def after_power_cut(self, chance: Random) -> bytes:
        if not self.changes:
            return self.durable
        fillers: list[Callable[[int], bytes]] = [bytes, bytes, chance.randbytes]
        filler = chance.choice(fillers)
        content = bytearray(self.content(_some(len(self.changes), chance), filler))
        if chance.random() < 0.2:  # the size is kept apart from the data, and may be any that it has been
            _set_size(content, chance.choice(self.sizes()), filler)
        return bytes(content)


class Disk:
    """A directory of files: what is durable, and what has been done since."""

    def __init__(self, files: dict[str, bytes]) -> None:
        """All of `files` is durable; they are numbered from 0 in their order."""
        self._files = dict(enumerate(_File(content) for content in files.values()))
        self._durable_names = {name: number for number, name in enumerate(files)}
        self._renamings: list[Names] = []
        self.names = dict(self._durable_names)

    def do(self, step: Step) -> None:
        """One more step of the process."""
        match step:
            case Write(file) | Resize(file):
                self._files[file].changes.append(step)
            case Sync(file):
                self._files[file] = _File(self._files[file].content(_everything))
            case Names(given):
                self._renamings.append(step)
                _rename(self.names, step)
                for _, number in given:
                    if number is not None:
                        self._files.setdefault(number, _File())
            case SyncDirectory():
                self._renamings.clear()
                self._durable_names = dict(self.names)
            case Said():
                pass

    @property
    def next_file(self) -> int:
        """A number that no file has had."""
        return max(self._files, default=-1) + 1

    def size(self, file: int) -> int:
        """How long a file is, to the process."""
        return self._files[file].sizes()[-1]

    def as_it_is(self) -> dict[str, bytes]:
        """What the process sees."""
        return {name: self._files[number].content(_everything) for name, number in self.names.items()}

    def after_power_cut(self, chance: Random) -> dict[str, bytes]:
        """What may be left of it."""
        names = dict(self._durable_names)
        keep = _some(len(self._renamings), chance)
        for number, renaming in enumerate(self._renamings):
            if keep(number, 0):
                _rename(names, renaming)
        contents = {number: self._files[number].after_power_cut(chance) for number in sorted(set(names.values()))}
        return {name: contents[number] for name, number in names.items()}


def seeded(seed: int | str) -> Random:
    """Chance that is the same in every run."""
    return Random(seed)  # noqa: S311


def _some(count: int, chance: Random) -> Keep:
    """Which of so many changes are kept, by one of the ways in which disks lose them."""
    at = chance.randrange(count + 1)
    kept = [chance.random() < chance.choice([0.1, 0.5, 0.9]) for _ in range(count)]
    sectors: dict[tuple[int, int], bool] = {}

    def torn(number: int, sector: int) -> bool:
        return sectors.setdefault((number, sector), chance.random() < 0.5)

    ways: list[Keep] = [
        lambda number, sector: False,  # nothing was written yet
        _everything,
        lambda number, sector: number < at,  # written in order, up to some point
        lambda number, sector: number < at or (number == at and torn(number, sector)),
        lambda number, sector: number != at,  # one was late
        lambda number, sector: number != at or torn(number, sector),
        lambda number, sector: kept[number],
        torn,
    ]
    return chance.choice(ways)


def _everything(number: int, sector: int) -> bool:
    return True


def _rename(names: dict[str, int], renaming: Names) -> None:
    for name, number in renaming.given:
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


def _set_size(content: bytearray, size: int, filler: Callable[[int], bytes]) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(filler(size - len(content)))
