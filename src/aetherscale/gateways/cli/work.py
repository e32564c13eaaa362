"""Long work on a node, with its progress: the request, the line that rewrites itself, the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from aetherscale.bus.refusals import words_of
from aetherscale.components import identities
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import NO_NODE, WAIT_RAN_OUT, Failure, near
from aetherscale.gateways.cli.grammar import Option
from aetherscale.gateways.cli.output import Progress
from aetherscale.gateways.cli.standard import Unwritable
from aetherscale.gateways.cli.values import seconds

if TYPE_CHECKING:
    from aetherscale.kernel.identity import Identity

FAILED_CODE = 500
TAIL_LINES: Final = 15
"""How much of the serial line of a guest is shown where its VM failed, and has no log of its own."""
TAIL_S: Final = 5.0
WAIT_OPTIONS = (
    Option("no-wait", "return as soon as the request is durable"),
    Option("timeout", "how long to wait, like 30s or 5m; the work continues after that", "TIME", seconds, "120s"),
)


def carry_out(
    context: Context, component: str, task: str, options: Mapping[str, Any], *, subject: str, kind: str, node: str = ""
) -> tuple[Mapping[str, Any], float]:
    """Have a task done and show its progress; answers with the view of the object, and the seconds that it took.

    Raises `Failure`: what the node said, or with status 5 that the wait is over while the work goes on.
    """
    wait = not context.values["no-wait"]
    timeout_s = context.values["timeout"]
    reference, is_begun = subject, False
    with context.out.progress(subject) as progress:
        chunks = context.client.ask(component, task, options, node=node, timeout_s=timeout_s, command=True)
        try:
            for chunk in chunks:
                # What is made on the way to it has a name of its own.
                is_begun = is_begun or f"{kind}-id" in chunk or chunk["type"] == "result"
                reference = chunk.get(f"{kind}-id", reference)
                progress.subject = chunk.get("name", progress.subject) if is_begun else progress.subject
                if chunk["type"] == "result":
                    view: Mapping[str, Any] = chunk[kind]
                    return view, progress.elapsed_s
                tell(progress, chunk)
                if not wait and is_begun:
                    break
        except TimeoutError:
            what = f"the wait of {timeout_s:g} s ran out"
            raise _cut_short(kind, reference, progress, what, is_begun=is_begun) from None
        except KeyboardInterrupt:
            failure = _cut_short(kind, reference, progress, "interrupted", is_begun=is_begun)
            failure.is_interrupt = True
            raise failure from None
        except Failure as failure:
            if failure.status == NO_NODE and progress.phase:
                # What was told is durable: a node that has gone since takes it up when it is back.
                if not is_begun:
                    raise _only_on_the_way(kind, progress, failure.message) from None
                raise _cut_short(kind, reference, progress, failure.message, when=" when the node is back") from None
            if not failure.hint and failure.code == FAILED_CODE:
                failure.hint = f"aetherscale why {kind} {progress.subject}"
            if kind == "vm" and failure.code == FAILED_CODE and not failure.details.get("log-tail"):
                failure.details["log-tail"] = _serial_tail(context, reference)
            raise
        finally:
            chunks.close()
        elapsed_s = progress.elapsed_s
    return info(context, kind, reference, node), elapsed_s


def _serial_tail(context: Context, vm: str) -> str:
    """The end of what a guest has written to its serial line; "" where it cannot be had."""
    try:
        options = {"vm-id": vm, "lines": TAIL_LINES}
        chunks = list(context.client.ask("compute", "vm-logs", options, timeout_s=TAIL_S))
    except (Failure, TimeoutError):
        return ""
    return "".join(str(chunk["text"]) for chunk in chunks if chunk["type"] == "item")


@contextmanager
def taken(what: str) -> Iterator[None]:
    """Print what was done; where stdout does not take it, the failure says so."""
    try:
        yield
        sys.stdout.flush()
    except Unwritable as lost:
        lost.done = f"the request was taken all the same: {what}"
        raise


def told_of(kind: str, view: Mapping[str, Any]) -> str:
    """An object with its id and its phase."""
    return f"{named(kind).noun} {view['name']} ({view['id']}) is {view['phase']}"


def info(context: Context, kind: str, reference: str, node: str = "") -> Mapping[str, Any]:
    """The view of one object. Raises `Failure` (404) that says which name may have been meant."""
    names = named(kind)
    with suggesting(context, kind, reference):
        options = {names.reference: reference}
        found: Mapping[str, Any] = context.client.result(names.component, names.show_task, options, node=node)[kind]
    return found


def named(kind: str) -> Identity:
    """What the component of a kind is called."""
    return next(each for each in identities() if each.kind == kind)


@contextmanager
def suggesting(context: Context, kind: str, reference: str) -> Iterator[None]:
    """Add to a failure for want of an object the name that may have been meant."""
    try:
        yield
    except Failure as failure:
        field = failure.details.get("field")
        missing = next((each for each in identities() if each.reference == field), None)
        if failure.code == 404 and missing is not None:
            items = context.client.items(missing.component, missing.list_task, {})
            names = [item[missing.kind]["name"] for item in items]
            if found := near(reference, names):
                failure.hint = f"did you mean: {found}?"
        raise


def tell(progress: Progress, chunk: Mapping[str, Any]) -> None:
    """A `status` chunk as a step of the progress line; a sign of life changes nothing."""
    match chunk.get("status"):
        case None | "working":
            return
        case "progress":
            if (amount := measured(chunk)) and isinstance(chunk.get("step"), str):
                progress.measure(chunk["step"], amount)
            else:
                progress.step(str(chunk.get("step", "")))
        case "retrying" | "restarting" as word:
            progress.step(word, str(chunk.get("reason") or f"not before {chunk.get('not-before')}"))
        case "stopping" | "deleting" as word if "grace-s" in chunk:
            progress.step(word, f"asked the guest to power off; forced stop in {chunk['grace-s']:g} s")
        case "forcing":
            progress.step("forcing", f"the guest did not power off within {chunk['waited-s']:g} s")
        case word:
            progress.step(str(word))


def measured(chunk: Mapping[str, Any]) -> str:
    """How far a step is: `120 of 330 MiB, 24.0 MiB/s, 9 s left`; "" where it does not say."""
    done, total = chunk.get("done-bytes"), chunk.get("total-bytes")
    if not isinstance(done, int):
        return ""
    said = f"{done >> 20} of {total >> 20} MiB" if isinstance(total, int) else f"{done >> 20} MiB"
    rate, left_s = chunk.get("rate-bytes-s"), chunk.get("left-s")
    if isinstance(rate, int):
        said += f", {rate / (1 << 20):.1f} MiB/s"
    if isinstance(left_s, int):
        said += f", {left_s // 60} min left" if left_s >= 120 else f", {left_s} s left"
    return said


def _only_on_the_way(kind: str, progress: Progress, what: str) -> Failure:
    """The node has gone while it made what was needed, and before it took the request itself."""
    return Failure(
        503,
        f"{what}; it was at: {progress.phase}. That goes on when the node is back, but {kind} {progress.subject} was "
        "not requested yet",
        hint="the same command again, when the node is back",
        status=NO_NODE,
    )


def _cut_short(
    kind: str, reference: str, progress: Progress, what: str, when: str = "", *, is_begun: bool = True
) -> Failure:
    look = f"aetherscale {words_of(kind)} show {progress.subject}"
    if progress.phase and not is_begun:
        so_far = f"{kind} {progress.subject} comes after: {progress.phase}. The work continues; this is not a failure"
        look = f"aetherscale {words_of(kind)} list"
    elif progress.phase:
        so_far = f"{kind} {progress.subject} was at: {progress.phase}. The work continues{when}; this is not a failure"
    else:
        so_far = f"{kind} {progress.subject} has not been heard of yet; the work may have begun"
    return Failure(
        504,
        f"{what}; {so_far}",
        hint=f"aetherscale vm wait {progress.subject}, or: {look}" if kind == "vm" and is_begun else look,
        status=WAIT_RAN_OUT,
        is_note=True,
        details={"phase": progress.phase, f"{kind}-id": reference},
    )
