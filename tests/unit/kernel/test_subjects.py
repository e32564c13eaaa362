"""The subjects that docs/subjects.md promises, to the letter; and what is no subject of ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aetherscale.kernel import subjects
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.names import derive_id
from aetherscale.kernel.subjects import Address

ID = derive_id("vm", "web")


@pytest.mark.parametrize(
    ("made", "tokens", "expected"),
    [
        (subjects.command, ("acme", "compute", "create-vm"), "aether.v1.acme.cmd.compute.create-vm"),
        (subjects.node_command, ("acme", "n1", "compute", "list-vms"), "aether.v1.acme.node.n1.compute.list-vms"),
        (subjects.object_command, ("acme", "vm", ID, "stop-vm"), f"aether.v1.acme.obj.vm.{ID}.stop-vm"),
        (subjects.all_command, ("acme", "compute", "list-vms"), "aether.v1.acme.all.compute.list-vms"),
        (subjects.auction, ("acme", "compute"), "aether.v1.acme.auction.compute"),
        (subjects.every_tenants_command, ("compute", "create-vm"), "aether.v1.*.cmd.compute.create-vm"),
        (subjects.rpc, ("acme",), "aether.v1.acme.rpc"),
        (subjects.response_channel, ("acme", "c-1"), "aether.v1.acme.rsp.c-1"),
        (subjects.heartbeat, ("n1",), "aether.v1.sys.hb.n1"),
        (subjects.ask_nodes, (), "aether.v1.sys.all.node.info"),
        (subjects.event, ("acme", "n1", "vm", ID, "VmBooted"), f"aether.v1.acme.evt.n1.vm.{ID}.vm-booted"),
        (subjects.object_events, ("acme", "vm", ID), f"aether.v1.acme.evt.*.vm.{ID}.*"),
        (subjects.node_events, ("n1",), "aether.v1.*.evt.n1.>"),
        (subjects.event_stream, ("n1",), "AETHER_EVT_n1"),
        (subjects.node_queue, ("n1",), "n-n1"),
    ],
)
def test_subjects_are_what_the_contract_says(made: Callable[..., str], tokens: tuple[str, ...], expected: str) -> None:
    assert made(*tokens) == expected


def test_a_node_listens_to_what_any_node_takes_in_a_queue_of_all_and_to_the_rest_in_its_own() -> None:
    assert subjects.subscriptions("compute", "n1") == [
        ("aether.v1.*.cmd.compute.*", "aether"),
        ("aether.v1.*.node.n1.compute.*", "n-n1"),
        ("aether.v1.*.all.compute.*", "n-n1"),
        ("aether.v1.*.auction.compute", "n-n1"),
    ]
    assert subjects.object_subscription("acme", "vm", ID, "n1") == (f"aether.v1.acme.obj.vm.{ID}.*", "n-n1")
    assert subjects.rpc_subscription() == ("aether.v1.*.rpc", "aether")


@pytest.mark.parametrize(
    ("subject", "address"),
    [
        ("aether.v1.acme.rpc", Address("rpc", "acme")),
        ("aether.v1.acme.cmd.compute.create-vm", Address("cmd", "acme", "compute", "create-vm")),
        ("aether.v1.acme.all.compute.list-vms", Address("all", "acme", "compute", "list-vms")),
        ("aether.v1.acme.auction.compute", Address("auction", "acme", "compute", "auction")),
        ("aether.v1.acme.node.n1.compute.list-vms", Address("node", "acme", "compute", "list-vms", target="n1")),
        (f"aether.v1.acme.obj.vm.{ID}.stop-vm", Address("obj", "acme", task="stop-vm", kind="vm", target=ID)),
    ],
)
def test_a_subject_is_read_as_what_it_says(subject: str, address: Address) -> None:
    assert subjects.parse(subject) == address


GOOD = (
    "aether.v1.acme.rpc",
    "aether.v1.acme.cmd.compute.create-vm",
    "aether.v1.acme.all.compute.list-vms",
    "aether.v1.acme.auction.compute",
    "aether.v1.acme.node.n1.compute.list-vms",
    f"aether.v1.acme.obj.vm.{ID}.stop-vm",
)


@pytest.mark.parametrize("subject", GOOD)
def test_no_token_may_be_anything_but_a_name(subject: str) -> None:
    """Each token is broken by itself, so that none of them goes unlooked at."""
    tokens = subject.split(".")
    for index in range(len(tokens)):
        broken = ".".join([*tokens[:index], "Not_A_Name", *tokens[index + 1 :]])
        with pytest.raises(Refused) as refusal:
            subjects.parse(broken)
        assert refusal.value.reason == Reason.BAD_REQUEST


@pytest.mark.parametrize("subject", GOOD)
def test_a_subject_has_neither_fewer_nor_more_tokens(subject: str) -> None:
    for other in (f"{subject}.more", subject.rpartition(".")[0]):
        with pytest.raises(Refused, match=r"expected aether\.v1") as refusal:
            subjects.parse(other)
        assert refusal.value.field == "subject"


RULE = "expected a name.*: lower-case letters a-z, digits and dashes; it begins with a letter, ends with a letter"


@pytest.mark.parametrize(
    ("subject", "field", "said"),
    [
        ("aether.v1.Default.cmd.compute.list-vms", "tenant", f"got the tenant 'Default', {RULE}"),
        ("aether.v1.sys.cmd.compute.list-vms", "tenant", "got the tenant 'sys', expected a name other than 'sys'"),
        ("aether.v1.acme.node.Host1.compute.list-vms", "subject", f"got the node 'Host1', {RULE}"),
        ("aether.v1.acme.obj.vm.web.stop-vm", "subject", "got the object 'web', expected an id of 16 digits 0-9 and"),
    ],
)
def test_the_whole_rule_is_said_of_a_token_that_breaks_it(subject: str, field: str, said: str) -> None:
    with pytest.raises(Refused, match=said) as refusal:
        subjects.parse(subject)
    assert (refusal.value.reason, refusal.value.field) == (Reason.BAD_REQUEST, field)


def test_an_objects_subject_takes_its_id_alone_and_nobody_is_the_system() -> None:
    with pytest.raises(Refused):
        subjects.parse("aether.v1.acme.obj.vm.web.stop-vm")
    with pytest.raises(Refused, match="the tenant 'sys'") as refusal:
        subjects.parse("aether.v1.sys.cmd.compute.create-vm")
    assert refusal.value.field == "tenant"


@pytest.mark.parametrize(
    ("reply", "may"),
    [
        ("_INBOX.a.1", True),
        ("other.v1.rsp.c-1", True),
        ("aetherial.c-1", True),
        ("aether.v1.acme.rsp.c-1", True),
        ("aether.v1.other.rsp.c-1", False),
        ("aether.v1.acme.cmd.compute.create-vm", False),
        ("aether.c-1", False),
        ("$JS.API.STREAM.DELETE.x", False),
        ("_INBOX.*", False),
        ("_INBOX.>", False),
        ("_INBOX..1", False),
        ("_INBOX.a b", False),
        ("", False),
    ],
)
def test_a_node_answers_on_callers_inboxes_and_on_no_subject_with_a_meaning(reply: str, may: bool) -> None:
    assert subjects.may_answer(reply, "acme") is may
