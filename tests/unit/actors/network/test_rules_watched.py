"""What is made of the kernel's messages about rules; `test_network_rules_watched.py` has the kernel itself."""

from __future__ import annotations

import struct

import pytest

from aetherscale.actors.network.nft.watching import RulesChanged, Transactions

BRIDGE, IPV6 = 7, 10
NEWTABLE, DELTABLE, NEWRULE, DELRULE, NEWGEN, TRACE = 0, 2, 6, 8, 15, 17
PORT = 4_000_000_000
OURS = (1, b"aetherscale\0")
END = ((1, b"\0\0\0\5"), (2, b"\0\0\1\1"), (3, b"nft\0"))
CHANGE = RulesChanged(5, 257, "nft", "rules removed")


def message(kind: int, *attributes: tuple[int, bytes], family: int = BRIDGE) -> bytes:
    body = struct.pack("!BBH", family, 0, 0)
    for number, value in attributes:
        body += struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), 0xA00 | kind, 0, 1, PORT) + body


def test_a_transaction_in_pieces_is_one() -> None:
    heard = Transactions()
    assert list(heard.read(message(DELRULE, OURS) * 3)) == []
    assert list(heard.read(message(DELRULE, (1, b"theirs\0")))) == []
    assert list(heard.read(message(NEWGEN, *END, family=0))) == [CHANGE]
    assert list(heard.read(message(NEWGEN, *END, family=0))) == []


def test_two_transactions_in_one_piece_are_two() -> None:
    one = message(DELRULE, OURS) + message(NEWGEN, *END, family=0)
    assert list(Transactions().read(one * 2)) == [CHANGE, CHANGE]


def test_a_transaction_whose_end_was_lost_is_not_added_to_the_next() -> None:
    heard = Transactions()
    assert list(heard.read(message(DELTABLE, OURS))) == []
    heard.forget()
    assert list(heard.read(message(DELRULE, (1, b"theirs\0")) + message(NEWGEN, *END, family=0))) == []
    assert list(heard.read(message(DELRULE, OURS) + message(NEWGEN, *END, family=0))) == [CHANGE]


@pytest.mark.parametrize(
    "other",
    [
        message(DELRULE, (1, b"aetherscale2\0")),
        message(DELRULE, (2, b"aetherscale\0")),
        message(DELRULE, OURS, family=IPV6),
        message(TRACE, OURS),
        message(DELRULE),
    ],
)
def test_what_is_not_about_our_tables_is_none_of_ours(other: bytes) -> None:
    assert list(Transactions().read(other + message(NEWGEN, *END, family=0))) == []


@pytest.mark.parametrize("size", range(len(message(DELRULE, OURS))))
def test_a_message_that_is_cut_short_is_passed_over(size: int) -> None:
    heard = Transactions()
    assert list(heard.read(message(DELRULE, OURS)[:size])) == []
    assert list(heard.read(message(NEWGEN, *END, family=0))) == []


def test_a_program_of_which_the_kernel_says_nothing_has_no_name() -> None:
    change = list(Transactions().read(message(NEWRULE, OURS) + message(NEWGEN, END[0], family=0)))
    assert change == [RulesChanged(5, 0, "", "rules added")]
