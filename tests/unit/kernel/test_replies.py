"""The chunks of a reply, to the letter of the contract."""

from __future__ import annotations

import pytest

from aetherscale.kernel import replies


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
    ("chunk", "final"),
    [
        (replies.status("booting"), False),
        (replies.item({}), False),
        (replies.result({}), True),
        ({"type": "error"}, True),
    ],
)
def test_a_result_or_an_error_is_the_last_chunk(chunk: replies.Chunk, final: bool) -> None:
    assert replies.is_final(chunk) is final
