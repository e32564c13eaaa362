"""All nodes are asked what they are, and answer at once. For programs that ask one question and end."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from aetherscale.bus import beats
from aetherscale.kernel import subjects
from aetherscale.kernel.errors import Refused

if TYPE_CHECKING:
    from aetherscale.bus.beats import Beat
    from aetherscale.bus.blocking import Connection

MAX_NODES: Final = 1024
"""Further answers are ignored: any client may send any number."""
NODES_S: Final = 5.5
"""How long to wait for a node: a little longer than from one sign of life to the next."""
QUIET_S: Final = 0.25
"""No node that is not named by another answers after such a silence."""


def call(connection: Connection) -> list[Beat]:
    """The report of each node, by name; a node that another one names is waited for.

    Two of one name are two. An answer that is not a node's is ignored. Raises `BusUnavailable`.
    """
    found: dict[tuple[str, str, str], Beat] = {}
    answers = connection.ask(subjects.ask_nodes(), b"")
    until_s = time.monotonic() + NODES_S
    heard = 0
    while heard < MAX_NODES and (remaining_s := until_s - time.monotonic()) > 0:
        named = {peer for beat in found.values() for peer in beat.peers}
        complete = bool(found) and named <= {beat.node for beat in found.values()}
        message = answers.receive(min(remaining_s, QUIET_S) if complete else remaining_s)
        if message is None or message.is_no_responders:
            break
        heard += 1
        with suppress(Refused):
            beat = beats.read(message.body)
            found[beat.identity] = beat
    answers.unsubscribe()
    return sorted(found.values(), key=lambda beat: beat.identity)
