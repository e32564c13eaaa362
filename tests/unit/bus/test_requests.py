"""How messages become calls, and which are refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from aetherscale.bus import requests
from aetherscale.bus.bus import Incoming
from aetherscale.bus.callers import NOBODY
from aetherscale.bus.refusals import CODES, hint
from aetherscale.kernel import subjects
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused

NOW_US = 1_700_000_000_000_000
OWNERS = {"vm": "compute"}
VM = "0123456789abcdef"
TRACE = "0af7651916cd43dd8448eb211c80319c"


def call(subject: str, body: bytes = b"", **headers: str) -> Call:
    incoming = Incoming(subject, body, {name.replace("_", "-"): value for name, value in headers.items()}, "")
    return requests.read(incoming, subjects.parse(subject), OWNERS, actor=NOBODY, now_us=NOW_US, new_id=lambda: "fresh")


def test_a_command_is_a_call_with_an_id_of_ours() -> None:
    assert call("aether.v1.acme.cmd.compute.start-vm", b'{"vm-id":"web"}') == Call(
        tenant="acme", component="compute", task="start-vm", body=b'{"vm-id":"web"}', actor="user:nats",
        command_id="fresh", keyed=False, correlation_id="fresh",
    )  # fmt: skip


@pytest.mark.parametrize(
    "subject",
    [
        "aether.v1.acme.cmd.compute.vm-info",
        "aether.v1.acme.node.host1.compute.vm-info",
        "aether.v1.acme.all.compute.vm-info",
        f"aether.v1.acme.obj.vm.{VM}.vm-info",
    ],
)
def test_every_class_of_subject_reaches_the_component(subject: str) -> None:
    made = call(subject)
    assert (made.tenant, made.component, made.task) == ("acme", "compute", "vm-info")
    assert made.object_id == (VM if ".obj." in subject else "")


def test_an_auction_asks_for_a_bid() -> None:
    made = call("aether.v1.acme.auction.compute", b"{}")
    assert (made.component, made.task) == ("compute", "auction")


def test_the_callers_key_makes_the_command_recognisable() -> None:
    made = call("aether.v1.acme.cmd.compute.start-vm", Nats_Msg_Id="order 66!")
    assert (made.command_id, made.keyed, made.correlation_id) == ("order 66!", True, "order 66!")


def test_correlation_and_causation_are_the_callers() -> None:
    made = call("aether.v1.acme.cmd.compute.start-vm", Aether_Correlation_Id="c", Aether_Causation_Id="host1.9.7")
    assert (made.correlation_id, made.causation_id) == ("c", "host1.9.7")


def test_a_trace_correlates_where_nothing_else_does() -> None:
    subject, trace = "aether.v1.acme.cmd.compute.start-vm", f"00-{TRACE}-b7ad6b7169203331-01"
    assert call(subject, traceparent=trace).correlation_id == TRACE
    assert call(subject, traceparent=trace, Aether_Correlation_Id="c").correlation_id == "c"
    assert call(subject, traceparent="nonsense").correlation_id == "fresh"


def test_a_time_to_wait_counts_from_the_arrival_whatever_the_callers_clock_says() -> None:
    subject = "aether.v1.acme.cmd.compute.start-vm"
    assert call(subject, Aether_Timeout_Ms="5").deadline_us == NOW_US + 5000
    assert call(subject, Aether_Timeout_Ms="5", Aether_Deadline="1700000000001").deadline_us == NOW_US + 1000
    for value in ("", "-1", "1.5", "5s", "9" * 16):
        with pytest.raises(Refused, match="expected milliseconds"):
            call(subject, Aether_Timeout_Ms=value)


def test_a_deadline_that_is_over_asks_to_compare_the_clocks_and_says_that_nothing_goes_on() -> None:
    with pytest.raises(Refused) as refused:
        call("aether.v1.acme.cmd.compute.start-vm", Aether_Deadline="1")
    assert "compare the clocks" in hint(refused.value.remedy)
    assert refused.value.details["goes-on"] is False


def test_who_a_caller_says_that_it_is_cannot_be_taken_for_who_it_is() -> None:
    subject = "aether.v1.acme.cmd.compute.start-vm"
    assert call(subject).actor == "user:nats"
    assert call(subject, Aether_Claimed_User="joe").actor == "user:nats (says: joe)"
    for forged in ("joe) (is: root", "root)", "a b", "x" * 65, "", "aether:compute", "joe\n", "jö"):
        with pytest.raises(Refused) as refused:
            call(subject, Aether_Claimed_User=forged)
        assert refused.value.field == "Aether-Claimed-User"


def test_a_deadline_in_the_future_goes_with_the_call() -> None:
    made = call("aether.v1.acme.cmd.compute.start-vm", Aether_Deadline="1700000000001")
    assert made.deadline_us == NOW_US + 1000


def test_the_first_versions_message_is_taken_as_it_was() -> None:
    body = b"""{"component": "computing", "task": "create-vm", "response-channel": "unique-channel-123456789",
        "options": {"image": "my-image", "virtual-network": "my-virtual-subnet", "public-ip": true}}"""
    made = call("aether.v1.acme.rpc", body)
    assert (made.component, made.task, made.legacy) == ("compute", "create-vm", True)
    assert msgspec.json.decode(made.body) == {
        "image": "my-image", "virtual-network": "my-virtual-subnet", "public-ip": True,
    }  # fmt: skip
    assert requests.response_channels(body, "acme", []) == ["aether.v1.acme.rsp.unique-channel-123456789"]


def test_the_first_versions_message_may_name_a_component_as_it_is_called_now() -> None:
    made = call("aether.v1.acme.rpc", b'{"component": "images", "task": "list-images"}')
    assert (made.component, made.body) == ("images", b"{}")


@pytest.mark.parametrize(
    ("headers", "code", "field"),
    [
        ({"Nats_Msg_Id": ""}, 400, "Nats-Msg-Id"),
        ({"Nats_Msg_Id": "x" * 129}, 400, "Nats-Msg-Id"),
        ({"Nats_Msg_Id": "smörgås"}, 400, "Nats-Msg-Id"),
        ({"Nats_Msg_Id": "a\tb"}, 400, "Nats-Msg-Id"),
        ({"Aether_Correlation_Id": "\x7f"}, 400, "Aether-Correlation-Id"),
        ({"Aether_Causation_Id": ""}, 400, "Aether-Causation-Id"),
        ({"Aether_Deadline": "soon"}, 400, "Aether-Deadline"),
        ({"Aether_Deadline": "-1"}, 400, "Aether-Deadline"),
        ({"Aether_Deadline": "1e3"}, 400, "Aether-Deadline"),
        ({"Aether_Deadline": "٣"}, 400, "Aether-Deadline"),
        ({"Aether_Deadline": "9" * 16}, 400, "Aether-Deadline"),
        ({"Aether_Deadline": "1699999999999"}, 504, "Aether-Deadline"),
    ],
)
def test_a_header_that_is_wrong_is_named(headers: dict[str, str], code: int, field: str) -> None:
    with pytest.raises(Refused) as refused:
        call("aether.v1.acme.cmd.compute.start-vm", b"", **headers)
    assert (CODES[refused.value.reason], refused.value.field) == (code, field)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"task": "t"}, "component"),
        ({"component": "computing"}, "task"),
        ({"component": 7, "task": "t"}, "component"),
        ({"component": "computing", "task": "../t"}, "task"),
        ({"component": "computing", "task": "t", "response-channel": "a.b"}, "response-channel"),
        ({"component": "computing", "task": "t", "response-channel": ">"}, "response-channel"),
        ({"component": "computing", "task": "t", "response-channel": "a\n"}, "response-channel"),
        ({"component": "computing", "task": "t", "response-channel": "x" * 65}, "response-channel"),
        ({"component": "computing", "task": "t", "extra": 1}, "extra"),
    ],
)
def test_a_first_versions_message_that_is_wrong_names_the_field(message: dict[str, Any], field: str) -> None:
    body = msgspec.json.encode(message)
    with pytest.raises(Refused) as refused:
        call("aether.v1.acme.rpc", body)
    assert (refused.value.reason, refused.value.field) == (Reason.BAD_REQUEST, field)
    assert requests.response_channels(body, "acme", []) == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"response-channel": null}', b"NaN"])
def test_what_is_no_message_has_no_response_channel(body: bytes) -> None:
    assert requests.response_channels(body, "acme", []) == []


def test_a_bad_message_is_answered_on_its_channel_where_that_is_good() -> None:
    body = b'{"component": 7, "response-channel": "here"}'
    assert requests.response_channels(body, "acme", []) == ["aether.v1.acme.rsp.here"]
    assert requests.response_channels(body, "acme", ["aether.v1.acme.rsp.here"]) == []


def test_an_object_of_a_kind_that_nobody_owns_is_not_found() -> None:
    with pytest.raises(Refused) as refused:
        call(f"aether.v1.acme.obj.volume.{VM}.info")
    assert (refused.value.reason, refused.value.field) == (Reason.NOT_FOUND, "subject")


@pytest.mark.parametrize(
    "subject",
    [
        "aether.v1.sys.cmd.compute.list-vms",
        "aether.v1.*.cmd.compute.list-vms",
        "aether.v1.>.cmd.compute.list-vms",
        "aether.v1.ACME.cmd.compute.list-vms",
        "aether.v1.\udcff.cmd.compute.list-vms",
        "aether.v1.a\x0bb.cmd.compute.list-vms",
        "aether.v1.acme.cmd.compute",
        "aether.v1.acme.cmd.compute.list-vms.more",
        "aether.v1.acme.cmd.compute.*",
        "aether.v1.acme.cmd.compute.a\x00b",
        "aether.v1.acme.obj.vm.web.stop-vm",
        "aether.v1.acme.obj.vm.0123456789ABCDEF.stop-vm",
        "aether.v1.acme.evt.host1.vm.x.y",
        "aether.v1.acme.rpc.more",
        "aether.v1.acme.auction.compute.more",
        "aether.v2.acme.rpc",
        "aether.v1",
        "",
    ],
)
def test_a_subject_of_another_shape_is_refused(subject: str) -> None:
    with pytest.raises(Refused) as refused:
        subjects.parse(subject)
    assert refused.value.reason == Reason.BAD_REQUEST
    msgspec.json.encode(refused.value.message)


@pytest.mark.parametrize(
    ("reply", "may"),
    [
        ("_INBOX.abc.1", True),
        ("my.own.inbox", True),
        ("aether.v1.acme.rsp.mine", True),
        ("aether.v1.other.rsp.mine", False),
        ("aether.v1.acme.rpc", False),
        ("aether.v1.acme.cmd.compute.delete-vm", False),
        ("aether.v2.x", False),
        ("$JS.API.STREAM.DELETE.AETHER_EVT_host1", False),
        ("$SYS.REQ.SERVER.PING", False),
        ("a.*", False),
        ("a.>", False),
        ("a..b", False),
        ("a b", False),
        ("a\r\nb", False),
        ("", False),
    ],
)
def test_an_answer_goes_only_where_it_can_do_no_harm(reply: str, may: bool) -> None:
    assert subjects.may_answer(reply, "acme") is may
