"""JSON from strangers is decoded strictly, or refused with the field that is wrong."""

from __future__ import annotations

import contextlib
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from aetherscale.actors.compute.model.commands import CreateVmOptions
from aetherscale.bus.refusals import hint
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.names import is_name, name_like
from aetherscale.kernel.wire import MAX_BODY_BYTES, MAX_DEPTH, Message, decode, encode


def refused(body: bytes) -> Refused:
    with pytest.raises(Refused) as refusal:
        decode(body, CreateVmOptions, "compute.create-vm")
    return refusal.value


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"image": 5}', "image"),
        (b'{"image": "a", "colour": 1}', "colour"),
        (b"{}", "image"),
        (b'{"image": "a", "cpus": 0}', "cpus"),
        (b'{"image": "a", "cpus": 1.5}', "cpus"),
        (b'{"image": "a", "cpus": "1"}', "cpus"),
        (b'{"image": "a", "memory-mib": 1e30}', "memory-mib"),
        (b'{"image": "../../etc/passwd"}', "image"),
        (b'{"image": "a", "name": "a,b"}', "name"),
        (b'{"image": "a", "name": "a\\nb"}', "name"),
        (b'{"image": "a", "name": "a\\n"}', "name"),
        (b'{"image": "a", "name": "a\\u0000"}', "name"),
        (b'{"image": "a", "name": "a.b"}', "name"),
        (b'{"image": "a", "name": "*"}', "name"),
        (b'{"image": "a", "name": ">"}', "name"),
        (b'{"image": "a", "name": "-a"}', "name"),
        (b'{"image": "a", "name": "a-"}', "name"),
        (b'{"image": "a", "name": "' + b"a" * 64 + b'"}', "name"),
        (b'{"image": "a", "labels": {"k": "a\\nb"}}', "labels"),
        (b'{"image": "a", "labels": {"k": 1}}', "labels"),
        (b'{"image": "a", "image": "b"}', "image"),
        (b'{"image": "a", "labels": {"k": "1", "k": "2"}}', "k"),
    ],
)
def test_the_wrong_field_is_named(body: bytes, field: str) -> None:
    refusal = refused(body)
    assert refusal.reason == Reason.BAD_REQUEST
    assert refusal.field.split(".")[-1] == field, refusal.message


def test_what_a_name_has_to_be_is_said_in_words_and_whole() -> None:
    refusal = refused(b'{"image": "a", "name": "VM_1-"}')
    assert refusal.message == (
        "compute.create-vm: field 'name': got 'VM_1-', expected a name: lower-case letters a-z, digits and dashes; it "
        "begins with a letter, ends with a letter or digit, and has at most 63 characters"
    )
    assert hint(refusal.remedy) == "perhaps vm-1"
    refusal = refused(b'{"image": "/etc/passwd"}')
    assert "got '/etc/passwd', expected a name (lower-case letters a-z, digits, dashes, '.' and '_'" in refusal.message
    assert "or an id of 16 digits" in refusal.message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('"cpus": 0', "field 'cpus': got 0, expected a whole number from 1 to 25"),
        ('"cpus": "two"', "field 'cpus': got 'two', expected a whole number from 1"),
        ('"cpus": true', "field 'cpus': got true, expected a whole number"),
        ('"memory-mib": 31', "field 'memory-mib': got 31, expected a whole number from 32 to"),
        ('"labels": {"\u00e9": "1"}', "field 'labels': got 'é', expected a key: letters a-z and A-Z, digits"),
        (f'"labels": {{"k": "{"x" * 257}"}}', "expected a value: text of one line, at most 256 characters"),
        ('"labels": {"k": 1}', "field 'labels': got 1, expected a value: text of one line"),
        ('"labels": []', "field 'labels': got an empty list, expected an object"),
        ('"restart": "maybe"', "field 'restart': got 'maybe', expected one of always, never, on-failure"),
        ('"autostart": "yes"', "field 'autostart': got 'yes', expected true or false"),
        ('"name": "nats://u:secret@h"', "field 'name': got an address, expected a name"),
    ],
)
def test_every_rule_is_said_in_words_with_what_was_got(body: str, said: str) -> None:
    message = refused(f'{{"image": "a", {body}}}'.encode()).message
    assert said in message
    assert "regex" not in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (rb'{"image": "\ud800"}', "image"),
        (rb'{"image": "a", "name": "\udc00x"}', "name"),
        (rb'{"image": "a", "labels": {"k": "\ud800"}}', "labels.k"),
        (rb'{"image": "a", "ssh-keys": ["a", "\ud800\ud800"]}', "ssh-keys"),
        (rb'{"image": "a", "\ud800": 1}', "\ufffd"),
    ],
)
def test_half_of_a_surrogate_pair_is_told_as_such(body: bytes, field: str) -> None:
    refusal = refused(body)
    assert (refusal.reason, refusal.field) == (Reason.BAD_REQUEST, field)
    said = r"got half of a surrogate pair, like \ud800 alone, expected whole characters"
    assert refusal.message == f"compute.create-vm: field {field!r}: {said}"


@pytest.mark.parametrize("body", [rb'{"image": "a', rb'{"image": "\ud800'])
def test_a_body_that_was_cut_off_is_not_json(body: bytes) -> None:
    assert "the body is not JSON" in refused(body).message


@pytest.mark.parametrize("reference", ["3", "3ad", "3ad4", "3ad41234567890abc"])
def test_of_a_part_of_an_id_no_name_is_made(reference: str) -> None:
    refusal = refused(b'{"image": "%s"}' % reference.encode())
    assert f"got {reference!r}, expected a name" in refusal.message
    assert hint(refusal.remedy) == ""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("VM1", "vm1"),
        ("web-", "web"),
        ("1a", "a"),
        ("My Web.Server", "my-web-server"),
        ("é", ""),
        ("lab,dmz", ""),
        ("vde:/run/x", ""),
        ("a" * 70, "a" * 63),
    ],
)
def test_a_name_that_would_do_is_one(text: str, name: str) -> None:
    assert name_like(text) == name
    assert not name or is_name(name)


@given(st.text())
def test_whatever_is_suggested_is_a_name(text: str) -> None:
    assert not (found := name_like(text)) or is_name(found)


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        b"null",
        b'"text"',
        b"5",
        b'{"image": NaN}',
        b'{"image": Infinity}',
        b'{"image": "a"',
        b'{"image": "a"}{}',
        b'\xff\xfe{"image": "a"}',
        b'{"image": "\xff"}',
        b'{"image": "a", "labels": {"k": "\\ud800"}}',
    ],
)
def test_what_is_not_json_or_not_an_object_is_refused(body: bytes) -> None:
    assert refused(body).reason == Reason.BAD_REQUEST


def test_a_body_beyond_the_limit_is_refused_before_it_is_parsed() -> None:
    assert refused(b" " * (MAX_BODY_BYTES + 1)).reason == Reason.TOO_LARGE


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_a_body_that_nests_too_deeply_is_refused(opening: bytes) -> None:
    refusal = refused(b'{"image": "a", "vpn": ' + opening * 10_000)
    assert refusal.reason == Reason.BAD_REQUEST
    assert str(MAX_DEPTH) in refusal.message


def nested(levels: int) -> bytes:
    """An object of so many levels, the last one empty."""
    return b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)


def test_a_body_nests_as_deeply_as_the_limit_says_and_no_deeper() -> None:
    assert "no such field" in refused(nested(MAX_DEPTH)).message
    assert f"nested deeper than {MAX_DEPTH} levels" in refused(nested(MAX_DEPTH + 1)).message


def test_what_was_closed_again_is_no_nesting() -> None:
    body = b'{"image": "a", "vpn": [' + b",".join([b"[]"] * 10 * MAX_DEPTH) + b"]}"
    assert decode(body, CreateVmOptions, "x").image == "a"


def test_what_was_closed_makes_no_room_for_what_nests_too_deeply_after_it() -> None:
    body = b'{"image": "a", "vpn": [' + b"[]," * MAX_DEPTH + b"[" * MAX_DEPTH
    assert f"nested deeper than {MAX_DEPTH} levels" in refused(body).message


def test_a_body_may_be_as_large_as_the_limit_says() -> None:
    body = b'{"image": "a"}'
    assert decode(body + b" " * (MAX_BODY_BYTES - len(body)), CreateVmOptions, "x").image == "a"


def test_a_name_that_is_too_long_for_a_message_is_cut() -> None:
    for body in (b'{"%b": 1}', b'{"image": "a", "vpn": {"%b": 1, "%b": 1}}'):
        assert len(refused(body.replace(b"%b", b"k" * 100)).field) == 64


def test_a_message_repeats_no_more_of_a_name_than_fits_on_a_line() -> None:
    refusal = refused(b'{"%b": 1}'.replace(b"%b", b"k" * 1000))
    assert refusal.message == f"compute.create-vm: field {'k' * 64!r}: there is no such field"


class Shaped(Message, frozen=True):
    """Fields whose patterns stand in different places of their types."""

    plain: Annotated[str, Meta(pattern="^a$", description="the letter a")] = "a"
    inner: Annotated[Annotated[str, Meta(pattern="^b$", description="the letter b")], Meta(max_length=9)] = "b"
    either: Annotated[str, Meta(pattern="^c$", description="the letter c")] | None = None
    many: (
        Annotated[str, Meta(pattern="^d$", description="the letter d")]
        | list[Annotated[str, Meta(pattern="^d$", description="the letter d")]]
    ) = "d"
    bare: Annotated[str, Meta(pattern="^f$")] = "f"
    row: Annotated[tuple[Annotated[str, Meta(pattern="^g$", description="the letter g")], ...], Meta(max_length=1)] = ()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"plain": "x"}', "x: field 'plain': got 'x', expected the letter a"),
        (b'{"inner": "x"}', "x: field 'inner': got 'x', expected the letter b"),
        (b'{"either": "x"}', "x: field 'either': got 'x', expected the letter c"),
        (b'{"many": "x"}', "x: field 'many': got 'x', expected the letter d"),
        (b'{"many": ["d", "x"]}', "x: field 'many[1]': got 'x', expected the letter d"),
        (b'{"many": [1]}', "x: field 'many[0]': got 1, expected the letter d"),
        (b'{"many": 1}', "x: field 'many': got 1, expected the letter d"),
        (b'{"row": ["x"]}', "x: field 'row[0]': got 'x', expected the letter g"),
        (b'{"row": ["g", "g"]}', "x: field 'row': got a list of 2, expected a list of 0 to 1 members"),
        (b'{"row": "g"}', "x: field 'row': got 'g', expected a list of 0 to 1 members"),
        (b'{"bare": "x"}', "x: field 'bare': Expected `str` matching regex '^f$'"),
    ],
)
def test_a_pattern_is_said_in_the_words_of_its_own_field(body: bytes, expected: str) -> None:
    with pytest.raises(Refused) as refusal:
        decode(body, Shaped, "x")
    assert refusal.value.message == expected


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{}", "field 'image': it is missing, and has to be there"),
        (b'{"image": "a", "colour": 1}', "field 'colour': there is no such field"),
        (b"[]", "got a list, expected one JSON object"),
        (b"7", "got a number, expected one JSON object"),
        (b"null", "got something else, expected one JSON object"),
    ],
)
def test_what_is_missing_or_too_much_is_said_in_words_of_the_field(body: bytes, said: str) -> None:
    assert refused(body).message == f"compute.create-vm: {said}"


def test_a_body_that_is_no_object_has_no_fields_to_speak_of() -> None:
    with pytest.raises(Refused) as refusal:
        decode(b'["b"]', list[Annotated[str, Meta(pattern="^a$")]], "x")
    assert refusal.value.message == "x: field '[0]': Expected `str` matching regex '^a$'"


def test_brackets_inside_text_are_no_nesting() -> None:
    body = b'{"image": "a", "labels": {"k": "' + b"[" * 100 + b'"}}'
    assert decode(body, CreateVmOptions, "x").labels == {"k": "[" * 100}


def test_a_message_is_written_in_the_order_of_its_fields_without_its_defaults() -> None:
    assert encode(Shaped(bare="f", inner="b", plain="x", either="c")) == b'{"plain":"x","either":"c"}'


def test_an_empty_body_stands_for_no_options() -> None:
    assert "image" in refused(b"").message


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(body: bytes) -> None:
    with contextlib.suppress(Refused):
        decode(body, CreateVmOptions, "x")
