"""Init scripts: what is taken, what follows from what a guest says of one, and until when is waited."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.component import COMPONENT
from aetherscale.actors.compute.model import commands, effects, events
from aetherscale.actors.compute.model.decide import COMPUTE
from aetherscale.actors.compute.model.firstboot import (
    MAX_FIRST_LINE_BYTES,
    MAX_OUTPUT_BYTES,
    MAX_SCRIPT_BYTES,
    InitEnded,
    checked_script,
    digest_of,
    shown_output,
)
from aetherscale.actors.compute.model.presentation import VM_KIND, view
from aetherscale.kernel.errors import Reason, Refused
from tests.support.spec import NOON_US
from tests.support.vm_pasts import (
    BOOTED,
    DELETE,
    DISK,
    ENDED,
    READY,
    REQUESTED,
    SPEC,
    STOPPING,
    VM,
    exited,
    failed,
    given,
    state_of,
)

SCRIPT: Final = "#!/bin/sh\necho hello\n"
SHA256: Final = hashlib.sha256(SCRIPT.encode()).hexdigest()
WITH_SCRIPT: Final = replace(REQUESTED, spec=replace(SPEC, init_sha256=SHA256, first_boot="tiny"))
UP: Final = (WITH_SCRIPT, DISK, BOOTED, READY)
GOOD: Final = InitEnded(VM, 1, "ended", 0, "hello\n")
TOLD: Final = events.VmInitEnded(1, "ended", 0, "hello\n")
REMOVED: Final = events.VmInitScriptRemoved()
WAITS: Final = commands.CreateVmOptions(image="tiny", init_script=SCRIPT, wait_for="init")


@pytest.mark.parametrize(
    "text",
    [
        SCRIPT,
        "#!/usr/bin/env python3\nprint(1)",
        "#! /bin/sh -e",
        "#!/bin/sh\nprintf 'a\rb'\n",
        "#!/bin/sh\n# ä \U0001f600\n",
        f"#!/{'x' * (MAX_FIRST_LINE_BYTES - 3)}\n",
    ],
)
def test_a_script_is_taken_as_it_is(text: str) -> None:
    assert checked_script(text) == text.encode()
    assert digest_of(checked_script(text)) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got an empty script"),
        ("#!/bin/sh\necho top-secret\0\n", "got a script with a NUL byte in it, which no shell reads"),
        ("#!/bin/sh\r\necho top-secret\r\n", "got a script whose lines end with CR LF, which no shell of Linux reads"),
        ("#!/bin/sh\necho top-secret\r\n", "got a script whose lines end with CR LF, which no shell of Linux reads"),
        (
            "\ufeff#!/bin/sh\ntop-secret",
            "got a script that begins with a byte order mark, which hides its #! from the kernel",
        ),
        *(
            (text, "got a script whose first line does not name its interpreter")
            for text in (
                "echo top-secret\n",
                "\n#!/bin/sh\ntop-secret",
                "#cloud-config\nruncmd: [top-secret]\n",
                "#!sh\ntop-secret",
                "#! \ntop-secret",
                "#!/bin/sh\r",
                f"#!/{'x' * (MAX_FIRST_LINE_BYTES - 2)}\n",
                "#",
            )
        ),
    ],
)
def test_what_no_guest_could_run_is_refused_and_not_repeated(text: str, message: str) -> None:
    with pytest.raises(Refused) as refused:
        checked_script(text)
    assert (refused.value.reason, refused.value.field, refused.value.message) == (
        Reason.BAD_REQUEST,
        "init-script",
        message,
    )
    assert "top-secret" not in f"{refused.value.message}{refused.value.remedy}{refused.value.details}"


def test_a_script_as_large_as_it_may_be_and_no_larger() -> None:
    largest = SCRIPT.ljust(MAX_SCRIPT_BYTES, "#")
    assert len(checked_script(largest)) == MAX_SCRIPT_BYTES
    for larger in (f"{largest}#", f"{largest[:-1]}ä"):
        with pytest.raises(Refused) as refused:
            checked_script(larger)
        assert (refused.value.reason, refused.value.field) == (Reason.TOO_LARGE, "init-script")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"", ""),
        (b"a\tb\nc\r\n", "a\tb\nc\n"),
        (b"\x1b[2J\x07\x00\x7f", "\ufffd[2J\ufffd\ufffd\ufffd"),
        (b"\xc2\x9b31m", "\ufffd31m"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("\u202eevil\u2066".encode(), "\ufffdevil\ufffd"),
        ("grün".encode(), "grün"),
    ],
)
def test_what_a_terminal_would_obey_is_not_recorded(raw: bytes, shown: str) -> None:
    assert shown_output(raw) == shown


def test_the_end_of_an_output_is_recorded_within_its_bound_whatever_becomes_of_its_bytes() -> None:
    assert shown_output(b"x" * MAX_OUTPUT_BYTES + b"end") == "x" * (MAX_OUTPUT_BYTES - 3) + "end"
    assert len(shown_output(b"\xff" * MAX_OUTPUT_BYTES).encode()) <= MAX_OUTPUT_BYTES
    assert shown_output(("ä" * MAX_OUTPUT_BYTES).encode()[:-1] + b"e").endswith("ä\ufffde")


class TestTheEnd:
    def test_it_is_told_once_and_the_script_is_removed_then(self) -> None:
        vm = given(*UP)
        assert vm.pending is None
        vm.when(GOOD).then(TOLD)
        told = given(*UP, TOLD)
        told.when(GOOD).nothing_happens()
        told.when(replace(GOOD, exit_status=1)).nothing_happens()
        assert isinstance(told.pending, effects.RemoveScript)
        told.when(effects.ScriptRemoved(told.pending.key)).then(REMOVED)
        assert given(*UP, TOLD, REMOVED).pending is None

    def test_a_guest_is_given_the_script_until_its_end_is_told(self) -> None:
        for past, gives in (((), True), ((TOLD,), False), ((TOLD, REMOVED), False)):
            boot = given(*UP, *past, exited("crash"), events.VmStartRequested()).pending
            assert isinstance(boot, effects.BootVm)
            assert boot.gives_script is gives
        none = given(REQUESTED, DISK).pending
        assert isinstance(none, effects.BootVm)
        assert not none.gives_script

    def test_the_word_of_a_guest_without_a_script_and_of_a_run_of_before_is_nothing(self) -> None:
        given(REQUESTED, DISK, BOOTED, READY).when(GOOD).nothing_happens()
        given(*UP).when(replace(GOOD, run=2)).nothing_happens()
        given(*UP, exited("crash")).when(GOOD).nothing_happens()

    def test_a_guest_that_its_script_shuts_down_is_heard(self) -> None:
        given(*UP, ENDED).when(GOOD).then(TOLD)

    def test_one_that_is_heard_before_qemu_has_answered_is_taken(self) -> None:
        given(WITH_SCRIPT, DISK).when(GOOD).then(TOLD)

    def test_a_script_that_cannot_be_removed_is_tried_again_for_ever(self) -> None:
        past: tuple[Any, ...] = (*UP, TOLD)
        for number in range(1, 9):
            vm = given(*past)
            assert isinstance(vm.pending, effects.RemoveScript)
            assert vm.pending.key == f"script-{number}"
            (event,) = COMPUTE.decide(vm.state, failed(vm.pending.key, retryable=False), NOON_US)
            assert isinstance(event, events.VmStepFailed)
            assert (event.step, event.attempt, event.retry_at is None) == ("removing-script", number, False)
            past = (*past, event)
        state = state_of(*past)
        assert (state.shown, state.failure) == ("ready", None)

    def test_a_vm_that_is_deleted_has_its_script_removed_with_the_rest(self) -> None:
        vm = given(*UP, TOLD).when(DELETE).then_types(events.VmDeleteRequested)
        assert not isinstance(vm.pending, effects.RemoveScript)


class TestWaiting:
    def is_done(self, *past: Any, options: commands.CreateVmOptions = WAITS) -> bool:
        return COMPONENT.commands["create-vm"].is_done(state_of(*past), options)

    def test_who_waits_for_the_guest_does_not_wait_for_the_script(self) -> None:
        assert self.is_done(*UP, options=replace(WAITS, wait_for="ready"))
        failing = events.VmInitEnded(1, "ended", 7, "")
        assert self.is_done(*UP, failing, options=replace(WAITS, wait_for="ready"))

    def test_who_waits_for_the_script_waits_for_both(self) -> None:
        assert not self.is_done(*UP)
        assert not self.is_done(WITH_SCRIPT, DISK, BOOTED, TOLD)
        assert self.is_done(*UP, TOLD)
        assert self.is_done(*UP, TOLD, REMOVED)

    @pytest.mark.parametrize(
        ("ended", "words"),
        [
            (events.VmInitEnded(1, "ended", 7, "no room"), "failed with exit status 7"),
            (events.VmInitEnded(1, "ended", 137, "no room"), "failed with exit status 137, as of signal 9"),
            (
                events.VmInitEnded(1, "interrupted", None, "no room"),
                "was interrupted: the guest went down or was rebooted while it ran, and does not run it again",
            ),
            (
                events.VmInitEnded(1, "not-run", None, "no room"),
                "was not run: the guest could not make sure that it runs once",
            ),
            (
                events.VmInitEnded(1, "lost", None, "no room"),
                "was not run: the node no longer had it when the guest was booted",
            ),
        ],
    )
    def test_a_bad_end_is_told_once_the_guest_is_ready_and_both_as_they_are(
        self, ended: events.VmInitEnded, words: str
    ) -> None:
        assert not self.is_done(WITH_SCRIPT, DISK, BOOTED, ended)
        with pytest.raises(Refused) as refused:
            self.is_done(*UP, ended)
        assert refused.value.reason == Reason.INTERNAL
        assert refused.value.message == f"the init script of the VM 'web' {words}; the VM itself is ready, and goes on"
        assert refused.value.details["log-tail"] == "no room"
        assert refused.value.details["exit-status"] == ended.exit_status
        assert f"; its init script {words}" in VM_KIND.descriptions.summarize(state_of(*UP, ended))

    def test_where_it_cannot_come_any_more_that_is_said(self) -> None:
        for past, message in (
            ((*UP, STOPPING, exited("user")), "the VM 'web' was stopped before its init script had ended"),
            ((*UP, events.VmDeleteRequested(True, 0)), "the VM 'web' was deleted before its init script had ended"),
        ):
            with pytest.raises(Refused) as refused:
                self.is_done(*past)
            assert refused.value.message == message


@pytest.mark.parametrize(
    ("past", "state", "status"),
    [
        ((), "awaited", None),
        ((TOLD,), "succeeded", 0),
        ((events.VmInitEnded(1, "ended", 3, ""),), "failed", 3),
        ((events.VmInitEnded(1, "interrupted", None, ""),), "interrupted", None),
        ((events.VmInitEnded(1, "not-run", None, ""),), "not-run", None),
        ((events.VmInitEnded(1, "lost", None, ""),), "lost", None),
    ],
)
def test_a_view_has_the_digest_and_the_end(past: tuple[Any, ...], state: str, status: int | None) -> None:
    shown = view(state_of(*UP, *past), "host1", 1)
    assert shown.first_boot == "tiny"
    assert shown.init_script is not None
    assert (shown.init_script.sha256, shown.init_script.state, shown.init_script.exit_status) == (SHA256, state, status)
    assert view(state_of(REQUESTED), "host1", 1).init_script is None
