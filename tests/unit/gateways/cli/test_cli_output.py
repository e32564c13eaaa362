"""What the command line writes: for scripts, for humans, and nothing that drives a terminal."""

from __future__ import annotations

import json

import pytest

from aetherscale.bus.refusals import CODES, SLUGS
from aetherscale.gateways.cli.failures import Failure, bad_usage, badness, later_version, meant, near
from aetherscale.gateways.cli.moments import ago, local
from aetherscale.gateways.cli.output import Output, harmless
from aetherscale.gateways.cli.values import detach_key
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.times import from_rfc3339

EXIT_STATUSES = {400: 2, 403: 1, 404: 3, 409: 1, 412: 1, 413: 2, 500: 1, 501: 1, 503: 1, 504: 5, 507: 1}


class TestFailures:
    def test_every_error_of_a_node_has_the_exit_status_of_the_contract(self) -> None:
        assert {code: Failure(code, "").status for code in SLUGS} == EXIT_STATUSES

    def test_an_error_can_have_no_other_code_than_those_with_a_word(self) -> None:
        assert set(CODES) == set(Reason)

    def test_a_failure_is_written_as_the_node_wrote_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        refused = Refused(Reason.NOT_FOUND, "no such VM: 'web'", field="vm-id", remedy=Task("vm", "list"))
        Output(json=True).failure(Failure.of_refusal(refused))
        written = capsys.readouterr()
        assert written.out == ""
        assert json.loads(written.err) == {
            "type": "error",
            "code": 404,
            "error": "not-found",
            "message": "no such VM: 'web'",
            "retryable": False,
            "details": {"field": "vm-id", "hint": "aetherscale vm list"},
        }

    def test_a_human_reads_what_failed_the_end_of_its_log_and_what_to_do(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        log = "\n".join(f"line {number}" for number in range(100))
        failure = Failure(500, "booting: it broke", hint="mend it", details={"log-tail": log})
        Output(json=False).failure(failure)
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "error: booting: it broke"
        assert lines[-2:] == ["  | line 99", "hint: mend it"]
        assert len(lines) < 20

    def test_the_name_that_may_have_been_meant_takes_the_place_of_the_hint(self) -> None:
        with pytest.raises(Failure) as failure, meant("wbe"):
            raise Refused(Reason.NOT_FOUND, "no such VM", remedy="list them", details={"known": ["db", "web"]})
        assert failure.value.hint == "did you mean: web?"
        assert "known" not in failure.value.details
        assert near("xyzzy", ["web", "db"]) == ""

    def test_usage_and_later_versions_have_their_own_statuses(self) -> None:
        assert (bad_usage("x").status, later_version("x").status) == (2, 1)


class TestText:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain\ttext\n", "plain\ttext\n"),
            ("\x1b[31mred\x1b[0m", "red"),
            ("\x1b]0;title\x07rest", "rest"),
            ("\x1b]52;c;aGk=\x1b\\rest", "rest"),
            ("\x1b[6n\x1bc\x1b", ""),
            ("a\r\nb\x08\x7f\x00", "a\nb"),
            ("\x9b31mred\u202eder", "31mredder"),
        ],
    )
    def test_nothing_of_a_guest_drives_the_terminal(self, text: str, shown: str) -> None:
        assert harmless(text) == shown

    @pytest.mark.parametrize(
        ("seconds", "said"),
        [
            (0, "just now"),
            (5, "just now"),
            (6, "6 seconds ago"),
            (59, "59 seconds ago"),
            (60, "1 minute ago"),
            (3599, "59 minutes ago"),
            (3600, "1 hour ago"),
            (86399, "23 hours ago"),
            (86400, "1 day ago"),
            (30 * 86400 - 1, "29 days ago"),
            (30 * 86400, "1 month ago"),
            (365 * 86400, "1 year ago"),
            (2 * 365 * 86400, "2 years ago"),
            (-5, "just now"),
        ],
    )
    def test_how_long_ago_it_was_is_said_in_the_largest_unit_that_is_full(self, seconds: int, said: str) -> None:
        assert ago("2026-01-31T12:00:00.000000Z", from_rfc3339("2026-01-31T12:00:00Z") + seconds * 1_000_000) == said

    def test_what_is_still_to_come_is_shown_as_a_time(self) -> None:
        time = "2026-01-31T12:00:00.000000Z"
        assert ago(time, from_rfc3339(time) - 60_000_000) == local(time)

    def test_bytes_that_are_no_utf8_are_shown_as_such(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = Output(json=True)
        out.value({"path": "caf\udce9"})
        assert json.loads(capsys.readouterr().out) == {"path": "caf\\xe9"}
        Output(json=False).failure(Failure(400, f"got {'x' + chr(0xDCFF)!r}, {chr(0xDCE9)}"))
        assert capsys.readouterr().err == "error: got 'x\\xff', \\xe9\n"

    def test_the_worst_exit_status_of_several(self) -> None:
        assert max((0, 5, 1), key=badness) == 1
        assert max((0, 5), key=badness) == 5
        assert max((1, 3, 2), key=badness) == 3
        assert max((3, 4, 5), key=badness) == 4

    def test_steps_of_long_work_are_lines_where_nobody_watches(self, capsys: pytest.CaptureFixture[str]) -> None:
        with Output(json=False).progress("web") as progress:
            progress.step("booting")
            progress.step("booting")
            progress.step("retrying", "no room")
        written = capsys.readouterr()
        assert written.out == ""
        steps = [line.rpartition(" (")[0] for line in written.err.splitlines()]
        assert steps == ["web: booting", "web: retrying: no room"]

    def test_with_json_nothing_but_data_and_errors_is_written(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = Output(json=True)
        out.note("by the way")
        with out.progress("web") as progress:
            progress.step("booting")
        out.value([{"name": "web"}])
        written = capsys.readouterr()
        assert (written.out, written.err) == ('[{"name":"web"}]\n', "")


@pytest.mark.parametrize(("text", "key"), [("ctrl-]", b"\x1d"), ("^]", b"\x1d"), ("Ctrl-A", b"\x01"), ("q", b"q")])
def test_a_detach_key_is_the_byte_that_a_terminal_sends(text: str, key: bytes) -> None:
    assert detach_key(text) == key


@pytest.mark.parametrize("text", ["", "ctrl-", "ctrl-1", "ab", "é", "\n", "^"])
def test_what_is_no_key_is_refused(text: str) -> None:
    if text == "^":
        assert detach_key(text) == b"^"
    else:
        with pytest.raises(ValueError, match="expected a key"):
            detach_key(text)
