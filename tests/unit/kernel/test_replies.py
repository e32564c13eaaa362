"""The chunks of a reply, to the letter of the contract."""

from __future__ import annotations

from typing import Any

import pytest

from aetherscale.kernel import replies
from aetherscale.kernel.errors import Refused


def test_a_status_an_item_and_a_result_tell_what_they_are() -> None:
    assert replies.status("retrying", vm_id="1", not_before="later") == {
        "type": "status",
        "status": "retrying",
        "vm-id": "1",
        "not-before": "later",
    }
    assert replies.item({"name": "web"}) == {"type": "item", "name": "web"}
    assert replies.result({"vm-id": "1"}) == {"type": "result", "vm-id": "1"}


@pytest.mark.parametrize(
    ("more", "details"),
    [
        ({}, {}),
        ({"field": "cpus"}, {"field": "cpus"}),
        ({"hint": "take fewer"}, {"hint": "take fewer"}),
        (
            {"field": "cpus", "hint": "take fewer", "details": {"most": 4}},
            {"most": 4, "field": "cpus", "hint": "take fewer"},
        ),
    ],
)
def test_an_error_tells_its_field_and_its_hint_in_its_details_where_it_has_them(
    more: dict[str, Any], details: dict[str, Any]
) -> None:
    assert replies.error(Refused(400, "too many CPUs", **more)) == {
        "type": "error",
        "code": 400,
        "error": "bad-request",
        "message": "too many CPUs",
        "retryable": False,
        "details": details,
    }


@pytest.mark.parametrize(
    ("chunk", "final"),
    [
        (replies.status("booting"), False),
        (replies.item({}), False),
        (replies.result({}), True),
        (replies.error(Refused(404, "no such VM")), True),
    ],
)
def test_a_result_or_an_error_is_the_last_chunk(chunk: replies.Chunk, final: bool) -> None:
    assert replies.is_final(chunk) is final
