"""The log of a state directory as a whole: is it what was written, what is in it, its way out and in as lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from aetherscale import statedir
from aetherscale.debugger.past import LOG_NAME, Kinds, explained, log_of, moment_of
from aetherscale.eventstore import archive as archiving
from aetherscale.eventstore import integrity, transfer
from aetherscale.eventstore.archive import KEPT_EVENTS, SEGMENT_EVENTS, Archived, Until
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.integrity import LogInfo, Verification
from aetherscale.eventstore.transfer import Transferred
from aetherscale.eventstore.witness import Witnessed, decode, decode_lines, encode
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.registry import event_types
from aetherscale.kernel.times import to_rfc3339

__all__ = [
    "KEPT_EVENTS",
    "SEGMENT_EVENTS",
    "Archived",
    "LogInfo",
    "Transferred",
    "Verification",
    "Witnessed",
    "archive",
    "decode",
    "export",
    "import_",
    "info",
    "keep",
    "preview",
    "prove",
    "read_witnessed",
    "verify",
    "witness",
]


def verify(state_dir: Path, kinds: Kinds, witnessed: Sequence[Witnessed] | None = None) -> Verification:
    """Read everything and prove it, down to the decoding of each event, and against heads that were kept elsewhere.

    Raises `Refused`.
    """
    path = log_of(state_dir)
    with explained():
        return integrity.verify(path, Codec(event_types(tuple(kinds))), witnessed)


def witness(state_dir: Path, now_us: int) -> Witnessed:
    """The end of the log as it is now, to be kept elsewhere. Raises `Refused`."""
    path = log_of(state_dir)
    with explained():
        return integrity.witness(path, to_rfc3339(now_us))


def read_witnessed(file: Path) -> list[Witnessed]:
    """The heads that a file keeps; none where there is no file.

    Raises `Refused` (bad request) that names the line, OSError.
    """
    try:
        with file.open("rb") as lines:
            return decode_lines(lines)
    except FileNotFoundError:
        return []
    except ValueError as wrong:
        raise Refused(Reason.BAD_REQUEST, f"the file of witnessed heads {file}: {wrong}", field="witness") from None


def keep(file: Path, witnessed: Witnessed) -> bool:
    """Add a head to a file of them, durably; false where it is the last one of its node already.

    Raises `Refused`: conflict where the log has fewer events than were witnessed before, as one that was rolled back
    has; bad request for a file of something else. Also OSError.
    """
    earlier = [each for each in read_witnessed(file) if each.node == witnessed.node]
    if earlier and earlier[-1].head_seq > witnessed.head_seq:
        raise Refused(
            Reason.CONFLICT,
            f"the log of node {witnessed.node} ends at event {witnessed.head_seq}, and event {earlier[-1].head_seq} "
            f"was witnessed at {earlier[-1].time}: it was rolled back, or is another one; nothing was added to {file}",
            remedy=Task("log", "verify", options={"witness": str(file)}),
        )
    if earlier and (earlier[-1].head_seq, earlier[-1].head_hash) == (witnessed.head_seq, witnessed.head_hash):
        return False
    with file.open("ab") as lines:
        lines.write(encode(witnessed))
        lines.flush()
        os.fsync(lines.fileno())
    return True


def prove(state_dir: Path) -> None:
    """Read everything; raises `Refused` where anything is not as it was written."""
    path = log_of(state_dir)
    with explained():
        integrity.prove(path)


def info(state_dir: Path) -> LogInfo:
    """What the log is, quickly. Raises `Refused`."""
    path = log_of(state_dir)
    with explained():
        return integrity.info(path)


def export(state_dir: Path, write: Callable[[bytes], object]) -> Transferred:
    """Write the log as JSON Lines, up to its end or to where it is damaged. Raises `Refused`."""
    path = log_of(state_dir)
    with explained():
        return transfer.export(path, write)


def import_(state_dir: Path, lines: Iterable[bytes], *, epoch: str, now_us: int) -> Transferred:
    """Make the log of a state directory, which has none, from the lines of an export. Raises `Refused`."""
    with explained():
        is_new = not state_dir.exists()
        statedir.make(state_dir)
        path = state_dir / LOG_NAME
        try:
            return transfer.import_(lines, path, epoch=epoch, now_us=now_us)
        except BaseException:
            if is_new:
                # No other process knows of it yet: the lock can go, with the directory.
                path.with_suffix(".lock").unlink(missing_ok=True)
                state_dir.rmdir()
            raise


def archive(state_dir: Path, *, before: str | None, now_us: int, keep: int, report: archiving.Report) -> Archived:
    """Seal the events before a moment, or all but the newest.

    Raises `Refused`, also beside a running node (conflict).
    """
    path, until = log_of(state_dir), _until(before, now_us, keep)
    with explained():
        return archiving.archive(path, until, report)


def preview(state_dir: Path, *, before: str | None, now_us: int, keep: int) -> Archived:
    """What `archive` would seal; nothing is changed. Raises `Refused`."""
    path, until = log_of(state_dir), _until(before, now_us, keep)
    with explained():
        return archiving.preview(path, until)


def _until(before: str | None, now_us: int, keep: int) -> Until:
    if before is None:
        return lambda reading: reading.head() - keep
    seq, time_us = moment_of(before, now_us)
    return lambda reading: seq - 1 if time_us is None else reading.position_at(time_us - 1)
