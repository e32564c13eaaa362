"""What follows when something is said to an image."""

from __future__ import annotations

from typing import Any

import pytest

from aetherscale.actors.images.model import commands, effects, events
from aetherscale.actors.images.model.decide import IMAGES, Image
from aetherscale.actors.images.model.presentation import is_deleted, is_ready, view
from aetherscale.bus.refusals import hint
from aetherscale.kernel.attempts import ATTEMPT_LIMIT
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.reservations import User
from aetherscale.kernel.times import SECOND_US, to_rfc3339
from tests.support.spec import NOON_US, Given

ID = "0123456789abcdef"
SHA = "a" * 64
IMPORT = commands.ImportImage(ID, "debian", "/srv/debian.qcow2", None, "none")
IMPORTING = events.ImageImportRequested(ID, "debian", "/srv/debian.qcow2", None, "none")
BUILDING = events.ImageBuildRequested(ID, "tiny", "tiny", first_boot="tiny")
STORED = events.ImageStored("qcow2", SHA, 1000, 2000)
DELETING = events.ImageDeleteRequested()


def given(*past: events.ImageEvent) -> Given[Image, Any, Any, Any]:
    return Given(IMAGES, past)


def failed(*, retryable: bool) -> EffectFailed:
    return EffectFailed("", "no qcow2", "take another", retryable)


def state_of(image: Given[Image, Any, Any, Any]) -> Image:
    assert image.state is not None
    return image.state


def test_an_import_makes_pending_a_fetch() -> None:
    image = given().when(IMPORT).then(IMPORTING)
    assert isinstance(image.pending, effects.FetchImage)


def test_a_build_makes_pending_a_build_and_is_ready_by_our_channel() -> None:
    image = given().when(commands.BuildImage(ID, "tiny", "tiny")).then(BUILDING)
    assert isinstance(image.pending, effects.BuildImage)
    assert state_of(image).ready_channel == "channel"


def test_images_that_older_versions_have_built_take_what_their_guests_do() -> None:
    for recipe, takes in (("tiny", "none"), ("debian-12", "credentials"), ("debian-13", "credentials")):
        assert state_of(given(events.ImageBuildRequested(ID, "old", recipe))).first_boot == takes  # type: ignore[arg-type]


def test_an_image_that_is_stored_is_ready() -> None:
    image = given(IMPORTING).when(effects.ImageStored("fetch-1", "qcow2", SHA, 1000, 2000)).then(STORED)
    assert is_ready(state_of(image))
    assert image.pending is None


def test_what_fails_for_the_moment_is_tried_again_and_then_undone() -> None:
    image = given(IMPORTING)
    for _ in range(ATTEMPT_LIMIT - 1):
        image = image.when(failed(retryable=True)).then_types(events.ImageStepFailed)
        assert isinstance(image.pending, effects.FetchImage)
    image = image.when(failed(retryable=True)).then_types(events.ImageStepFailed, events.ImageUndone)
    assert isinstance(image.pending, effects.RemoveImage)


def test_a_rejected_image_is_taken_back_and_the_caller_is_told_why() -> None:
    image = given(IMPORTING).when(failed(retryable=False)).then_types(events.ImageStepFailed, events.ImageUndone)
    assert not is_ready(state_of(image))
    image = image.when(effects.ImageRemoved("remove-1")).then(events.ImageDeleted())
    with pytest.raises(Refused, match="no qcow2") as refusal:
        is_ready(state_of(image))
    assert hint(refusal.value.remedy) == "take another"


def test_an_image_in_use_is_not_deleted() -> None:
    given(IMPORTING, STORED).when(
        commands.DeleteImage(ID, (User("vm", "VM", "1", "web"), User("vm", "VM", "2", "db")))
    ).is_refused(409, "web, db")


def test_a_delete_during_an_import_ends_the_import() -> None:
    image = given(IMPORTING).when(commands.DeleteImage(ID)).then(DELETING)
    assert isinstance(image.pending, effects.RemoveImage)
    with pytest.raises(Refused, match="deleted before it was ready"):
        is_ready(state_of(image))


def test_a_second_delete_changes_nothing_and_a_third_finds_nothing() -> None:
    given(IMPORTING, STORED, DELETING).when(commands.DeleteImage(ID)).nothing_happens()
    given(IMPORTING, STORED, DELETING, events.ImageDeleted()).when(commands.DeleteImage(ID)).is_refused(404, "deleted")


def test_a_removal_that_fails_for_good_can_be_asked_for_again() -> None:
    image = given(IMPORTING, STORED, DELETING).when(failed(retryable=False)).then_types(events.ImageStepFailed)
    assert image.pending is None
    with pytest.raises(Refused, match="could not be deleted"):
        is_deleted(state_of(image))
    assert isinstance(image.when(commands.DeleteImage(ID)).then(DELETING).pending, effects.RemoveImage)


def test_every_attempt_has_its_number_and_its_wait() -> None:
    image = given(IMPORTING, STORED, DELETING)
    for attempt in range(1, ATTEMPT_LIMIT + 1):
        again = to_rfc3339(NOON_US + 2 ** (attempt - 1) * SECOND_US) if attempt < ATTEMPT_LIMIT else None
        step = events.ImageStepFailed("deleting", attempt, "no qcow2", "take another", "", again)
        image = image.when(failed(retryable=True)).then(step)


def test_what_is_taken_back_is_removed_from_its_first_attempt_and_its_first_failure_is_told() -> None:
    image = given(IMPORTING).when(failed(retryable=True)).then_types(events.ImageStepFailed)
    image = image.when(failed(retryable=False)).then_types(events.ImageStepFailed, events.ImageUndone)
    assert image.pending is not None
    assert image.pending.key == "remove-1"
    never = EffectFailed("", "the disk is broken", "mend it", retryable=False)
    failure = state_of(image.when(never).then_types(events.ImageStepFailed)).failure
    assert failure is not None
    assert (failure.phase, failure.reason, failure.hint) == ("importing", "no qcow2", "take another")


def test_who_asks_again_for_a_deletion_that_failed_sees_no_old_failure() -> None:
    image = given(IMPORTING, STORED, DELETING).when(failed(retryable=False)).then_types(events.ImageStepFailed)
    assert state_of(image.when(commands.DeleteImage(ID)).then(DELETING)).failure is None


def test_an_image_is_failed_since_it_failed() -> None:
    image = IMAGES.evolve(state_of(given(IMPORTING, STORED)), DELETING, NOON_US + 1)
    [step] = IMAGES.decide(image, failed(retryable=False), NOON_US + 2)
    seen = view(IMAGES.evolve(image, step, NOON_US + 2), "host1", 4)
    assert (seen.phase, seen.since) == ("failed", to_rfc3339(NOON_US + 2))
