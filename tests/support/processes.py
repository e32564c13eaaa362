"""Processes of a node, as /proc has them."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.node import RunningNode


def nats_server_of(node: RunningNode) -> int | None:
    """The pid of the node's own nats-server; None while it has none."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                process = Path("/proc", entry)
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == node.pid and "nats-server" in (process / "cmdline").read_text().split("\0")[0]:
                    return int(entry)
            except OSError:
                continue
    return None
