"""What `vm exec` says to a node and hears from it, on a connection that is none."""

from __future__ import annotations

import base64
import json
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from aetherscale.bus.bus import Incoming
from aetherscale.gateways.cli import guestprogram
from aetherscale.gateways.cli.client import ANSWER_S
from aetherscale.gateways.cli.failures import NO_NODE, Failure
from aetherscale.gateways.cli.guestprogram import PIECES, REPORT_BYTES, GuestProgram, NotBegun

ATTACHED = {"type": "status", "status": "attached", "node": "host1", "pid": 7}


class Reply:
    """One reply: what is in it has come."""

    def __init__(self, *chunks: dict[str, Any]) -> None:
        self.waiting = deque(Incoming("", json.dumps(chunk).encode(), {}, "") for chunk in chunks)
        self.patience: list[float] = []

    def receive(self, timeout_s: float) -> Incoming | None:
        self.patience.append(timeout_s)
        return self.waiting.popleft() if self.waiting else None

    def unsubscribe(self) -> None:
        return


class Node:
    """A connection to a node that answers with these replies, one for each request."""

    url = "nats://here"

    def __init__(self, *replies: Reply) -> None:
        self.replies = deque(replies)
        self.said: list[dict[str, Any]] = []
        self.settings = SimpleNamespace(tenant="default", state_dir=None)
        self.program = SimpleNamespace(new_token=lambda: "t")
        self.client = SimpleNamespace(connection=self, whole=lambda options: options)

    def ask(self, subject: str, body: bytes) -> Reply:
        self.publish(subject, body)
        return self.replies.popleft()

    def publish(self, subject: str, body: bytes) -> None:
        self.said.append(json.loads(body))

    def flush(self) -> None:
        return


def started(*replies: Reply, said: tuple[dict[str, Any], ...] = ()) -> tuple[GuestProgram, Node]:
    node = Node(Reply(ATTACHED, *said), *replies)
    return GuestProgram(node, "web", ["true"], has_input=True), node  # type: ignore[arg-type]


def data(text: bytes, name: str = "data") -> dict[str, Any]:
    return {"type": "item", name: base64.b64encode(text).decode()}


def test_output_and_its_end_are_heard_and_reported_as_taken() -> None:
    big = b"x" * REPORT_BYTES
    program, node = started(
        said=(data(b"a"), data(b"b", "error-data"), data(big), {"type": "result", "exit-code": 3, "reason": "ended"})
    )
    assert (program.node, program.pid) == ("host1", 7)
    assert [program.heard(), program.heard(), program.heard()] == [(b"a", False), (b"b", True), (big, False)]
    program.took(2)
    assert len(node.said) == 1, "a little is not reported at once"
    program.took(REPORT_BYTES)
    assert node.said[-1]["seen-bytes"] == REPORT_BYTES + 2
    assert program.heard() is None
    assert (program.has_ended, program.exit_code) == (True, 3)
    program.leave()
    assert not any("detach" in each for each in node.said), "it has ended by itself"


@pytest.mark.parametrize("said", [(), ({"type": "status", "status": "progress", "step": "starting the program"},)])
def test_a_program_that_has_not_begun_in_time_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, said: tuple[dict[str, Any], ...]
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)  # what is waited depends on the time alone
    reply = Reply(*said)
    with pytest.raises(NotBegun):
        GuestProgram(Node(reply), "web", ["true"], has_input=True, until_s=102.5)  # type: ignore[arg-type]
    assert reply.patience == [2.5] * (len(said) + 1)


def test_no_more_pieces_are_under_way_than_the_bound() -> None:
    replies = [Reply() for _ in range(PIECES + 1)]
    program, node = started(*replies)
    for _ in range(PIECES):
        assert program.has_room()
        program.give(b"x")
    assert not program.has_room()
    replies[0].waiting.extend(Reply({"type": "status", "status": "working"}, {"type": "result"}).waiting)
    assert program.has_room()
    program.give(b"")
    assert node.said[-1] == {"session": "t", "end": True}
    assert not program.has_given_all()


def test_a_program_that_takes_no_more_input_is_given_none() -> None:
    refused = {"type": "error", "code": 409, "error": "conflict", "message": "has ended", "retryable": False}
    program, node = started(Reply(refused))
    program.give(b"x")
    assert program.has_room()
    assert program.is_deaf
    program.give(b"y")
    assert len(node.said) == 2


def test_a_node_that_ends_a_session_of_which_it_heard_nothing_is_told_from_the_end_of_a_program() -> None:
    program, _ = started(said=({"type": "result", "exit-code": None, "reason": "silence"},))
    with pytest.raises(Failure, match="had heard nothing of it"):
        program.heard()


def test_who_leaves_says_so() -> None:
    program, node = started()
    program.leave()
    assert node.said[-1] == {"session": "t", "detach": True}


def test_a_node_that_falls_silent_before_the_program_has_begun_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guestprogram, "start", lambda settings: "aetherscale serve")
    reply = Reply({"type": "status", "status": "progress"})
    with pytest.raises(Failure, match="no node answers") as failed:
        GuestProgram(Node(reply), "web", ["true"], has_input=False)  # type: ignore[arg-type]
    assert failed.value.status == NO_NODE
    assert reply.patience == [ANSWER_S, guestprogram.BEGIN_S]
