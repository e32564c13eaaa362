"""What is pending for an image, to the letter, and what its callers are told on the way and in the end."""

from __future__ import annotations

from typing import Any, Final

import pytest

from aetherscale.actors.images.component import COMPONENT
from aetherscale.actors.images.model import commands, effects, events
from aetherscale.actors.images.model.decide import IMAGES, Image
from aetherscale.actors.images.model.presentation import IMAGE_KIND, announce, holds, view
from aetherscale.bus.refusals import CODES, hint
from aetherscale.kernel.attempts import FIRST
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.reservations import NameClaimed, NameReleased, User
from aetherscale.kernel.times import SECOND_US, to_rfc3339
from tests.support.spec import NOON_US, reserved_by

ID: Final = "0123456789abcdef"
SHA: Final = "a" * 64
SOURCE: Final = "/srv/debian.qcow2"
IN_4_S: Final = NOON_US + 4 * SECOND_US
IMPORTING: Final = events.ImageImportRequested(ID, "debian", SOURCE, SHA, "none")
BUILDING: Final = events.ImageBuildRequested(ID, "tiny", "tiny")
STORED: Final = events.ImageStored("qcow2", SHA, 1000, 2000)
DELETING: Final = events.ImageDeleteRequested()
UNDONE: Final = events.ImageUndone()
DELETED: Final = events.ImageDeleted()
Past = tuple[events.ImageEvent, ...]


def again(step: str, attempt: int = 1) -> events.ImageStepFailed:
    """The step has failed, and is tried again in four seconds."""
    return events.ImageStepFailed(step, attempt, "no answer", "wait", "", to_rfc3339(IN_4_S))


def for_good(step: str) -> events.ImageStepFailed:
    return events.ImageStepFailed(step, 3, "no qcow2", "take another", "the log", None)


def state_of(past: Past) -> Image:
    image = None
    for event in past:
        image = IMAGES.evolve(image, event, NOON_US)
    assert image is not None
    return image


EXPECTED: list[tuple[Past, effects.ImagesEffect | None]] = [
    ((IMPORTING,), effects.FetchImage("fetch-1", ID, SOURCE, SHA)),
    ((IMPORTING, again("importing", 2)), effects.FetchImage("fetch-3", ID, SOURCE, SHA, not_before_us=IN_4_S)),
    ((BUILDING,), effects.BuildImage("build-1", ID, "tiny")),
    ((BUILDING, again("building")), effects.BuildImage("build-2", ID, "tiny", not_before_us=IN_4_S)),
    ((IMPORTING, again("importing"), STORED), None),
    ((IMPORTING, STORED, DELETING), effects.RemoveImage("remove-1", ID, SOURCE)),
    ((IMPORTING, STORED, DELETING, again("deleting")),
     effects.RemoveImage("remove-2", ID, SOURCE, not_before_us=IN_4_S)),
    ((IMPORTING, again("importing"), DELETING), effects.RemoveImage("remove-1", ID, SOURCE)),
    ((IMPORTING, STORED, DELETING, again("deleting"), for_good("deleting"), DELETING),
     effects.RemoveImage("remove-1", ID, SOURCE)),
    ((IMPORTING, again("importing"), for_good("importing"), UNDONE),
     effects.RemoveImage("remove-1", ID, SOURCE, rolled_back=True)),
    ((BUILDING, for_good("building"), UNDONE), effects.RemoveImage("remove-1", ID, "recipe:tiny", rolled_back=True)),
    ((IMPORTING, STORED, DELETING, for_good("deleting")), None),
    ((IMPORTING, STORED, DELETING, DELETED), None),
]  # fmt: skip


@pytest.mark.parametrize(("past", "pending"), EXPECTED)
def test_this_is_pending_to_the_letter(past: Past, pending: effects.ImagesEffect | None) -> None:
    assert IMAGES.pending(state_of(past)) == pending


def test_an_image_that_is_stored_has_no_attempts_behind_it() -> None:
    image = state_of((IMPORTING, again("importing"), STORED))
    assert image.attempt == FIRST


def test_the_view_of_an_image_tells_what_was_stored() -> None:
    seen = view(
        state_of((events.ImageImportRequested(ID, "debian", SOURCE, None, "none"), STORED)), "host1", 2, "user:1"
    )
    assert (seen.phase, seen.ready, seen.source, seen.failure) == ("ready", "none", SOURCE, None)
    assert (seen.format, seen.sha256, seen.size_bytes, seen.virtual_size_bytes) == ("qcow2", SHA, 1000, 2000)
    assert (seen.node, seen.revision, seen.requested_by) == ("host1", 2, "user:1")


def test_the_view_of_an_image_that_failed_tells_why() -> None:
    seen = view(state_of((IMPORTING, STORED, DELETING, for_good("deleting"))), "host1", 4)
    assert seen.failure is not None
    assert (seen.phase, seen.failure.phase) == ("failed", "deleting")
    assert (seen.failure.reason, seen.failure.hint, seen.failure.log_tail) == ("no qcow2", "take another", "the log")


STATUSES: list[tuple[Past, str, dict[str, Any]]] = [
    ((IMPORTING,), "importing", {"name": "debian"}),
    ((BUILDING,), "building", {"name": "tiny"}),
    ((IMPORTING, again("importing")), "retrying", {"reason": "no answer", "not-before": to_rfc3339(IN_4_S)}),
    ((IMPORTING, for_good("importing"), UNDONE), "undoing", {}),
    ((IMPORTING, STORED, DELETING), "deleting", {}),
]


@pytest.mark.parametrize(("past", "phase", "details"), STATUSES, ids=[case[1] for case in STATUSES])
def test_each_step_has_its_status(past: Past, phase: str, details: dict[str, Any]) -> None:
    told = announce(state_of(past), past[-1])
    assert told == {"type": "status", "status": phase, "image-id": ID, **details}


@pytest.mark.parametrize(
    "past", [(IMPORTING, for_good("importing")), (IMPORTING, STORED), (IMPORTING, STORED, DELETING, DELETED)]
)
def test_what_the_answer_tells_has_no_status(past: Past) -> None:
    assert announce(state_of(past), past[-1]) is None


ENDS: list[tuple[str, Past, bool]] = [
    ("import-image", (IMPORTING,), False),
    ("import-image", (IMPORTING, for_good("importing"), UNDONE), False),
    ("import-image", (IMPORTING, STORED), True),
    ("build-image", (BUILDING,), False),
    ("build-image", (BUILDING, STORED), True),
    ("delete-image", (IMPORTING, STORED, DELETING), False),
    ("delete-image", (IMPORTING, STORED, DELETING, DELETED), True),
]


@pytest.mark.parametrize(("task", "past", "done"), ENDS)
def test_a_task_is_done_when_what_was_asked_for_is_there(task: str, past: Past, done: bool) -> None:
    assert COMPONENT.commands[task].is_done(state_of(past), None) is done


BAD_ENDS: list[tuple[str, Past, int, str]] = [
    ("import-image", (IMPORTING, for_good("importing"), UNDONE, DELETED), 500,
     "the image could not be imported: no qcow2"),
    ("import-image", (IMPORTING, for_good("importing"), UNDONE, for_good("deleting")), 500,
     "the image could not be imported: no qcow2"),
    ("build-image", (BUILDING, for_good("building"), UNDONE, DELETED), 500,
     "the image could not be built: building: no qcow2"),
    ("import-image", (IMPORTING, DELETING), 409, "the image 'debian' was deleted before it was ready"),
    ("import-image", (IMPORTING, DELETING, DELETED), 409, "the image 'debian' was deleted before it was ready"),
    ("delete-image", (IMPORTING, STORED, DELETING, for_good("deleting")), 500,
     "the image 'debian' could not be deleted: deleting: no qcow2"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "past", "code", "message"), BAD_ENDS)
def test_a_bad_end_is_told_with_its_reason(task: str, past: Past, code: int, message: str) -> None:
    with pytest.raises(Refused) as refusal:
        COMPONENT.commands[task].is_done(state_of(past), None)
    assert (CODES[refusal.value.reason], refusal.value.message) == (code, message)
    if code == 500:
        phase = next(event.step for event in past if isinstance(event, events.ImageStepFailed))
        assert hint(refusal.value.remedy) == "take another"
        assert refusal.value.details == {"image-id": ID, "phase": phase, "reason": "no qcow2", "log-tail": "the log"}


@pytest.mark.parametrize(
    ("past", "reserved"),
    [
        ((IMPORTING,), (NameClaimed("image", "debian", ID),)),
        ((BUILDING,), (NameClaimed("image", "tiny", ID),)),
        ((IMPORTING, STORED), ()),
        ((IMPORTING, STORED, DELETING), ()),
        ((IMPORTING, STORED, DELETING, DELETED), (NameReleased("image", "debian", ID),)),
    ],
)
def test_the_name_is_held_from_the_request_to_the_deletion(past: Past, reserved: Any) -> None:
    assert reserved_by(IMAGE_KIND, holds, past) == reserved


@pytest.mark.parametrize(
    ("users", "named"),
    [(1, "1 VM(s): vm0"), (5, "5 VM(s): vm0, vm1, vm2, vm3, vm4"), (6, "6 VM(s): vm0, vm1, vm2, vm3, vm4 …")],
)
def test_who_still_uses_an_image_is_named_up_to_five(users: int, named: str) -> None:
    delete = commands.DeleteImage(ID, tuple(User("vm", "VM", str(number), f"vm{number}") for number in range(users)))
    with pytest.raises(Refused) as refusal:
        IMAGES.decide(state_of((IMPORTING, STORED)), delete, NOON_US)
    assert refusal.value.message == f"the image 'debian' is in use by {named}"
    assert refusal.value.details["used-by"] == [user.name for user in delete.used_by]
    assert hint(refusal.value.remedy) == "aetherscale vm delete vm0"


def test_no_more_than_a_hundred_users_of_an_image_are_listed() -> None:
    delete = commands.DeleteImage(ID, tuple(User("vm", "VM", str(number), f"vm{number}") for number in range(101)))
    with pytest.raises(Refused) as refusal:
        IMAGES.decide(state_of((IMPORTING, STORED)), delete, NOON_US)
    assert refusal.value.details["used-by"] == [user.name for user in delete.used_by[:100]]


OUTCOMES = (
    effects.ImageStored("", "qcow2", SHA, 1000, 2000),
    effects.ImageRemoved(""),
    EffectFailed("", "no qcow2"),
)


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("past", [(), (IMPORTING, STORED, DELETING, DELETED)])
def test_what_comes_of_an_image_that_is_not_there_changes_nothing(past: Past, outcome: Any) -> None:
    assert tuple(IMAGES.decide(state_of(past) if past else None, outcome, NOON_US)) == ()


@pytest.mark.parametrize("begun", [IMPORTING, BUILDING])
def test_an_image_that_could_not_be_brought_in_is_undone(begun: Any) -> None:
    never = EffectFailed("", "no qcow2", "take another", retryable=False, log_tail="the log")
    step = "importing" if begun is IMPORTING else "building"
    first = events.ImageStepFailed(step, 1, "no qcow2", "take another", "the log", None)
    assert tuple(IMAGES.decide(state_of((begun,)), never, NOON_US)) == (first, UNDONE)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (commands.ImportImage(ID, "debian", SOURCE, None, "none"), f"the image {ID} exists already"),
        (commands.BuildImage(ID, "tiny", "tiny"), f"the image {ID} exists already"),
    ],
)
def test_an_id_is_made_once(message: Any, words: str) -> None:
    with pytest.raises(Refused) as refusal:
        IMAGES.decide(state_of((IMPORTING,)), message, NOON_US)
    assert (refusal.value.reason, refusal.value.message) == (Reason.CONFLICT, words)


@pytest.mark.parametrize(
    ("past", "words"), [((), "no such image"), ((IMPORTING, DELETING, DELETED), "no such image: it has been deleted")]
)
def test_what_is_not_there_cannot_be_deleted(past: Past, words: str) -> None:
    with pytest.raises(Refused) as refusal:
        IMAGES.decide(state_of(past) if past else None, commands.DeleteImage(ID), NOON_US)
    assert (refusal.value.reason, refusal.value.message) == (Reason.NOT_FOUND, words)
