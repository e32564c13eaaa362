"""A VM that fails shows its phase and the end of its log: of QEMU where it has one, else of the serial line."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from aetherscale.gateways.cli.failures import Failure
from aetherscale.gateways.cli.output import Progress
from aetherscale.gateways.cli.work import TAIL_LINES, TAIL_S, carry_out


def failed(failure: Failure, serial: Any, kind: str = "vm") -> Failure:
    """The failure of a task, on a node that answers so for the serial line."""

    def ask(component: str, task: str, options: Any, **more: Any) -> Generator[dict[str, Any]]:
        if task != "vm-logs":
            yield {"type": "status", "status": "starting", "vm-id": "1"}
            raise failure
        assert (options, more) == ({"vm-id": "1", "lines": TAIL_LINES}, {"timeout_s": TAIL_S})
        if isinstance(serial, Exception):
            raise serial
        yield {"type": "item", "text": serial}
        yield {"type": "result"}

    context = SimpleNamespace(
        values={"no-wait": False, "timeout": 1.0},
        out=SimpleNamespace(progress=lambda subject: nullcontext(Progress(subject))),
        client=SimpleNamespace(ask=ask),
    )
    with pytest.raises(Failure) as raised:
        carry_out(context, "compute", "create-vm", {}, subject="web", kind=kind)  # type: ignore[arg-type]
    return raised.value


def test_a_guest_that_panicked_shows_the_end_of_its_serial_line() -> None:
    shown = failed(Failure(500, "the guest panicked"), "Kernel panic - not syncing")
    assert shown.details["log-tail"] == "Kernel panic - not syncing"


def test_a_log_of_its_own_is_not_replaced() -> None:
    own = Failure(500, "QEMU ended at its start", details={"log-tail": "no such machine"})
    assert failed(own, "serial").details["log-tail"] == "no such machine"


@pytest.mark.parametrize("lost", [Failure(503, "gone"), TimeoutError()])
def test_a_serial_line_that_cannot_be_had_hides_no_failure(lost: Exception) -> None:
    shown = failed(Failure(500, "the guest panicked"), lost)
    assert (shown.message, shown.details["log-tail"]) == ("the guest panicked", "")


def test_a_refusal_and_what_is_no_vm_have_none() -> None:
    assert "log-tail" not in failed(Failure(409, "refused"), "serial").details
    assert "log-tail" not in failed(Failure(500, "broken"), "serial", kind="image").details
