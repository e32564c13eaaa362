"""The NATS client protocol without I/O: whatever the pieces, whatever strangers put into them."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.bus import protocol
from aetherscale.bus.bus import Incoming
from aetherscale.bus.protocol import Control, Delivery, Parser, ProtocolError

STREAM = (
    b'INFO {"server_id":"x","max_payload":1048576}\r\n'
    b"PING\r\n"
    b"MSG a.b 7 5\r\nhello\r\n"
    b"MSG a.b 7 back.here 0\r\n\r\n"
    b"+OK\r\n"
    b"HMSG a 8 30 35\r\nNATS/1.0\r\nX: 1\r\nY: a: b\r\n \r\n\r\nhello\r\n"
    b"HMSG _INBOX.1 9 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
    b"-ERR 'Permissions Violation'\r\n"
)
FRAMES = [
    Control("INFO", '{"server_id":"x","max_payload":1048576}'),
    Control("PING", ""),
    Delivery(7, Incoming("a.b", b"hello", {}, "")),
    Delivery(7, Incoming("a.b", b"", {}, "back.here")),
    Control("+OK", ""),
    Delivery(8, Incoming("a", b"hello", {"X": "1", "Y": "a: b"}, "")),
    Delivery(9, Incoming("_INBOX.1", b"", {"Status": "503"}, "")),
    Control("-ERR", "'Permissions Violation'"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_the_frames_are_the_same_in_whatever_pieces_they_come(cuts: list[int]) -> None:
    parser, found = Parser(), []
    edges = [0, *sorted(cuts), len(STREAM)]
    for begin, end in pairwise(edges):
        found += parser.feed(STREAM[begin:end])
    assert found == FRAMES


def test_every_byte_on_its_own_is_a_piece_too() -> None:
    parser = Parser()
    assert [frame for byte in STREAM for frame in parser.feed(bytes([byte]))] == FRAMES


@pytest.mark.parametrize("subject", [b"t.\xff\xfe", b"t.a\x0bb", b"t.a\x00b", b"t.*", b"t.>", b"t..a", "t.ü".encode()])
def test_whatever_subject_a_server_delivers_is_read_and_can_be_answered(subject: bytes) -> None:
    [frame] = Parser().feed(b"MSG " + subject + b" 1 2\r\nhi\r\n")
    assert isinstance(frame, Delivery)
    assert frame.incoming.subject.encode("utf-8", "surrogateescape") == subject
    [frame] = Parser().feed(b"MSG t 1 " + subject + b" 2\r\nhi\r\n")
    assert isinstance(frame, Delivery)
    assert frame.incoming.reply.encode("utf-8", "surrogateescape") == subject


@given(st.binary(max_size=300))
def test_any_header_block_is_read(block: bytes) -> None:
    for name, value in protocol.parse_headers(block).items():
        assert isinstance(name, str)
        assert isinstance(value, str)


@given(st.binary(max_size=200))
def test_what_is_no_nats_is_told_or_waited_for(data: bytes) -> None:
    with suppress(ProtocolError):
        Parser().feed(data + b"\r\n")


@pytest.mark.parametrize(
    "line",
    [
        b"MSG a 1\r\n",
        b"MSG a b c d e 1\r\n",
        b"MSG a x 1\r\n",
        b"MSG a 1 -1\r\n",
        b"MSG a 1 99999999999\r\n",
        b"HMSG a 1 12 4\r\n",
        b"MSG a 1 1\r\nhello\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"x" * (protocol.MAX_LINE_BYTES + 1),
    ],
)
def test_what_no_server_says_ends_the_connection(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        Parser().feed(line)


@given(
    st.from_regex(r"\A[a-z0-9]+(\.[a-z0-9*>]{2,5})*\Z"),
    st.binary(max_size=100),
    st.dictionaries(
        st.from_regex(r"\A[A-Za-z-]{1,10}\Z"), st.text(st.characters(min_codepoint=32, exclude_categories=["C"]))
    ),
    st.sampled_from(["", "_INBOX.x.1"]),
)
def test_what_is_published_is_what_is_delivered(subject: str, body: bytes, headers: dict[str, str], reply: str) -> None:
    line, _, payload = protocol.publish(subject, body, headers, reply).partition(b"\r\n")
    verb, name, *rest = line.split(b" ")
    delivered = b" ".join([verb.replace(b"PUB", b"MSG"), name, b"1", *rest]) + b"\r\n" + payload
    [frame] = Parser().feed(delivered)
    stripped = {key: value.strip(" ") for key, value in headers.items()}
    assert frame == Delivery(1, Incoming(subject, body, stripped, reply))


@pytest.mark.parametrize("value", ["a\r\nB: c", "a\nb", "\x00", "\x7f", "a\r\n"])
def test_a_header_cannot_smuggle_in_another(value: str) -> None:
    with pytest.raises(ValueError, match="no header may have"):
        protocol.publish("a", b"", {"A": value})


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.b", "a.b", True), ("a.*", "a.b", True), ("a.*", "a.b.c", False), ("a.>", "a.b.c", True),
        ("a.>", "a", False), (">", "a", True), ("*.b", "a.b", True), ("*.b", "a.c", False), ("a", "a.b", False),
    ],
)  # fmt: skip
def test_patterns_match_as_the_server_has_it(pattern: str, subject: str, expected: bool) -> None:
    assert protocol.matches(pattern, subject) is expected


def test_a_header_named_status_is_not_the_servers_word() -> None:
    forged = protocol.parse_headers(b"NATS/1.0\r\nStatus: 503\r\nDescription: gone\r\nX: 1\r\n\r\n")
    assert dict(forged) == {"X": "1"}
    assert protocol.parse_headers(b"NATS/1.0 503\r\n\r\n")["Status"] == "503"
    with pytest.raises(ValueError, match="the server's own"):
        protocol.encode_headers({"Status": "503"})


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("'Authorization Violation'", "refuses the credentials"),
        ("'authorization violation'", "refuses the credentials"),
        ("'maximum connections exceeded'", "max_connections"),
        ("'Maximum Control Line Exceeded'", "max_control_line"),
        ("'something\x1b[2J new'", "the server says: 'something [2J new'"),
    ],
)
def test_what_a_server_says_is_told_by_its_meaning(said: str, meant: str) -> None:
    assert meant in protocol.meaning(said)
    assert "\x1b" not in protocol.meaning(said)
