"""How `vm exec` ends where it is not the program that says how."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aetherscale.gateways.cli import programs, vm_exec
from aetherscale.gateways.cli.failures import FAILED, USAGE, WAIT_RAN_OUT, Failure
from aetherscale.gateways.cli.guestprogram import NotBegun


@pytest.mark.parametrize(("said", "status"), [(126, 126), (127, 127), (0, USAGE), ("127", USAGE), (None, USAGE)])
def test_what_cannot_be_run_has_the_status_of_a_shell(
    monkeypatch: pytest.MonkeyPatch, said: object, status: int
) -> None:
    def run(context: object) -> int:
        raise Failure(400, "the guest could not run 'x'", details={"exit-status": said})

    monkeypatch.setattr(vm_exec, "_run", run)
    with pytest.raises(Failure) as failed:
        vm_exec.exec_vm(SimpleNamespace())  # type: ignore[arg-type]
    assert failed.value.status == status


class Client:
    """Says of a program that was hung up whether `kill -0` finds it; with None nothing, until it is given up."""

    def __init__(self, clock: list[float], *found: bool | None) -> None:
        self.clock, self.found, self.patience = clock, list(found), list[float]()

    def result(self, component: str, task: str, options: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.patience.append(timeout_s)
        found = self.found.pop(0)
        self.clock[0] += timeout_s if found is None else 0.1
        if found is None:
            raise TimeoutError
        return {"exit-code": 0 if found else 1}


def ran(monkeypatch: pytest.MonkeyPatch, ending: str, *found: bool | None) -> tuple[Failure, list[float], float]:
    """The failure of a program that ended so; how long the guest was waited for each time; the time that all took."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])  # what is waited depends on the time alone
    monkeypatch.setattr("time.sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    program = SimpleNamespace(pid=77, exit_code=None)
    monkeypatch.setattr(programs, "GuestProgram", lambda *_, **__: program)
    monkeypatch.setattr(programs, "_Exec", lambda *_, **__: SimpleNamespace(run=lambda: ending))
    client = Client(clock, *found)
    context: Any = SimpleNamespace(client=client)
    with pytest.raises(Failure) as failed:
        programs.run_with_streams(context, "web", ["sleep"], reads_stdin=False, timeout_s=2.0)
    return failed.value, client.patience, clock[0] - 100


@pytest.mark.parametrize(("ending", "status"), [("too late", 124), ("left", FAILED)])
def test_a_program_that_was_ended_in_time(monkeypatch: pytest.MonkeyPatch, ending: str, status: int) -> None:
    failure, _, _ = ran(monkeypatch, ending, True, False)
    assert (failure.status, "was ended (SIGHUP)" in failure.message) == (status, True)


@pytest.mark.parametrize("found", [[True] * 100, [True, True, None]])
def test_a_program_that_goes_on_is_named(monkeypatch: pytest.MonkeyPatch, found: list[bool | None]) -> None:
    failure, _, took_s = ran(monkeypatch, "too late", *found)
    assert failure.status == WAIT_RAN_OUT
    assert "continues in spite of SIGHUP in the guest, as process 77" in failure.message
    assert "kill -9 77" in failure.hint
    assert took_s < programs.GOES_S + 1


def test_a_guest_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where QEMU hangs, so that --timeout is a bound."""
    failure, patience, took_s = ran(monkeypatch, "too late", None)
    assert failure.status == WAIT_RAN_OUT
    assert "had not ended within 2 s; it may continue in the guest" in failure.message
    assert (patience, took_s) == ([programs.GOES_S], programs.GOES_S)


def test_a_program_that_has_not_begun_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*_: object, **__: object) -> None:
        raise NotBegun

    monkeypatch.setattr(programs, "GuestProgram", hangs)
    context: Any = SimpleNamespace(client=None)
    with pytest.raises(Failure, match="had not begun within 2 s; if it begins later, it is ended") as failed:
        programs.run_with_streams(context, "web", ["sleep"], reads_stdin=False, timeout_s=2.0)
    assert failed.value.status == WAIT_RAN_OUT
