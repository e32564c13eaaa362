"""All that can be measured, in the order in which it is."""

from __future__ import annotations

from typing import Final

from benchmarks.harness import Row
from benchmarks.rows_accept import ACCEPT_ROWS
from benchmarks.rows_bridge import BRIDGE_ROWS
from benchmarks.rows_firewall import FIREWALL_ROWS
from benchmarks.rows_images import IMAGE_ROWS
from benchmarks.rows_inside import INSIDE_ROWS
from benchmarks.rows_log import LOG_ROWS
from benchmarks.rows_memory import MEMORY_ROWS
from benchmarks.rows_networked import NETWORKED_ROWS
from benchmarks.rows_node import NODE_ROWS
from benchmarks.rows_past import PAST_ROWS
from benchmarks.rows_ports import PORT_ROWS
from benchmarks.rows_qemu import QEMU_ROWS
from benchmarks.rows_ready import READY_ROWS
from benchmarks.rows_resolver import RESOLVER_ROWS
from benchmarks.rows_rules import RULES_ROWS
from benchmarks.rows_vm_ports import VM_PORT_ROWS

ROWS: Final[tuple[Row, ...]] = (
    *LOG_ROWS,
    *PAST_ROWS,
    *ACCEPT_ROWS,
    *NODE_ROWS,
    *QEMU_ROWS,
    *READY_ROWS,
    *INSIDE_ROWS,
    *RULES_ROWS,
    *FIREWALL_ROWS,
    *PORT_ROWS,
    *BRIDGE_ROWS,
    *RESOLVER_ROWS,
    *VM_PORT_ROWS,
    *NETWORKED_ROWS,
    *IMAGE_ROWS,
    *MEMORY_ROWS,
)
