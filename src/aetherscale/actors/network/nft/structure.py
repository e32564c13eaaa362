"""Whether our tables are as this program has made them, told without reading a single element of their sets.

Tables, chains, rules and sets are as many with a thousand ports as with none. So digests of them, but for what they
count, are written into a set of the tables as soon as they are made, and the next process of a node compares them in
7 ms. One is of the table of flows. Elements are not told. The handles of chains and rules are in the digests: no other
of a table ever gets the same.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from hashlib import sha256
from typing import Final

from aetherscale.actors.network.model.chains import NOTE, SETS, TABLE
from aetherscale.actors.network.model.marks import NOTED, TABLES
from aetherscale.actors.network.model.ruleset import FAMILIES, OURS, UNNOTED, Standing
from aetherscale.actors.network.nft.messages import (
    DUMP,
    GETCHAIN,
    GETRULE,
    GETSET,
    GETSETELEM,
    GETTABLE,
    NETLINK_NETFILTER,
    NLMSG_DONE,
    NLMSG_ERROR,
    attribute,
    attributes,
    elements,
    messages,
    pairs,
    request,
)
from aetherscale.actors.network.nft.watching import FLOWS

_NUMBERS: Final = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
"""NFPROTO_…: all families of nf_tables."""
_OF_ANY: Final = 0
_NAMES: Final = {table.encode() + b"\0": table for table in TABLES}
_OF_TABLE, _OF_SET, _NAME, _EXPRESSIONS = 1, 2, 1, 4
_CHAIN_NAME, _SET_NAME, _SET_FLAGS = 3, 2, 3
_SET_ANONYMOUS, _SET_MAP = 0x1, 0x8
_COUNTER: Final = b"counter\0"
_SHAPES: Final = {
    GETTABLE: (_NAME, 2),
    GETCHAIN: (2, 3, 4, 5),
    GETRULE: (2, 3),
    GETSET: (2, 16),
}
"""What is compared: of a table its name and flags; of a chain its handle, name, hook and policy; of a rule its chain,
handle and expressions; of a set its name and handle. Where this changes, `NOTE` has to have another name."""
_KEY, _VALUE = 1, 1
_RECEIVED: Final = 1 << 16


class Structure:
    """A socket into the network namespace of the thread that makes it. Used by one thread at a time.

    It is one socket for good, as `Generation` has it.
    """

    def __init__(self) -> None:
        """OSError: there are no descriptors left."""
        self._asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._sequence = 0

    def lost(self) -> str:
        """What is not as it was noted, in words: `tables removed`, `rules changed`; "" for nothing, or nothing known.

        OSError: the kernel refuses to say (EPERM without CAP_NET_ADMIN).
        """
        found, noted = self.tables(), self._noted()
        # A version that made no table of flows noted nothing either.
        if any(each not in found for each in OURS if noted or each[1] == TABLE):
            return "tables removed"
        changed = [table for table in NOTED if noted and self._digest(table) not in noted]
        return "" if not changed else "rules changed" if TABLE in changed else f"{FLOWS} changed"

    def note(self) -> str:
        """The text of nft that notes how the tables are now, and nothing else. OSError: as `lost`."""
        digests = ", ".join(f"{self._digest(table):#x}" for table in NOTED)
        return f"{UNNOTED}add element {SETS[NOTE][0]} {TABLE} {NOTE} {{ {digests} }}\n"

    def tables(self) -> set[tuple[str, str]]:
        """Those that have a name of ours, ours or not, each with its family. OSError: as `lost`."""
        families = {number: family for family, number in _NUMBERS.items()}
        found = ((body[0], attributes(body[4:]).get(_OF_TABLE)) for body in self._dump(GETTABLE, _OF_ANY, b""))
        return {(families[number], _NAMES[name]) for number, name in found if number in families and name in _NAMES}

    def standing(self) -> Standing:
        """What stands of our tables. OSError: as `lost`."""
        chains: set[tuple[str, str]] = set()
        sets: dict[tuple[str, str], str] = {}
        for family in FAMILIES:
            for of in self._of_table(GETCHAIN, family, TABLE):
                chains.add((family, _text(of[_CHAIN_NAME])))
            for of in self._of_table(GETSET, family, TABLE):
                flags = int.from_bytes(of.get(_SET_FLAGS, b""), "big")
                # One without a name is of its rule, and goes with it.
                if not flags & _SET_ANONYMOUS:
                    sets[family, _text(of[_SET_NAME])] = "map" if flags & _SET_MAP else "set"
        return Standing(frozenset(chains), sets)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._asking.close()

    def _digest(self, table: str) -> int:
        """Of all that is compared of the tables of a name: 32 bits, which a mark of nft has."""
        seen: list[str] = []
        for family in (family for family, name in OURS if name == table):
            for asked, shape in _SHAPES.items():
                for found in self._of_table(asked, family, table):
                    said = _said(found[_EXPRESSIONS]) if asked == GETRULE else ""
                    seen.append(f"{family} {asked} {[found.get(each) for each in shape]} {said}")
        return int.from_bytes(sha256("\n".join(sorted(seen)).encode()).digest()[:4], "big")

    def _of_table(self, asked: int, family: str, table: str) -> Iterator[dict[int, bytes]]:
        """The attributes of what there is of a sort in a table."""
        named = table.encode() + b"\0"
        # The kernel picks rules and sets by the table; of chains and tables it tells all.
        of_table = attribute(_OF_TABLE, named) if asked in (GETRULE, GETSET) else b""
        for body in self._dump(asked, _NUMBERS[family], of_table):
            found = attributes(body[4:])
            if found.get(_OF_TABLE) == named:
                yield found

    def _noted(self) -> set[int]:
        """The digests that were noted; none where nothing is known."""
        where = attribute(_OF_TABLE, TABLE.encode() + b"\0") + attribute(_OF_SET, NOTE.encode() + b"\0")
        found = (each for body in self._dump(GETSETELEM, _NUMBERS[SETS[NOTE][0]], where) for each in elements(body))
        keys = (attributes(attributes(element)[_KEY])[_VALUE] for element in found)
        return {int.from_bytes(key, sys.byteorder) for key in keys}

    def _dump(self, asked: int, family: int, wanted: bytes) -> Iterator[bytes]:
        """The bodies of the answers; none where there is no such table or set."""
        self._sequence = self._sequence % 0x7FFF_FFFF + 1
        self._asking.send(request(asked, self._sequence, family, wanted, flags=DUMP))
        while True:
            for kind, sequence, _, body in messages(self._asking.recv(_RECEIVED)):
                if sequence != self._sequence:
                    continue
                number = -struct.unpack_from("=i", body)[0] if kind in (NLMSG_DONE, NLMSG_ERROR) else 0
                if number not in (0, errno.ENOENT):
                    raise OSError(number, f"the tables of networks cannot be read: {os.strerror(number)}")
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    return
                yield body


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("ascii")


def _said(expressions: bytes) -> list[bytes]:
    """What a rule says, without what it has counted."""
    named = ((attributes(each)[_NAME], each) for _, each in pairs(expressions))
    return [name if name == _COUNTER else each for name, each in named]
