"""An operation as it looks over HTTP."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from aetherscale.gateways.http.problems import details_of
from aetherscale.gateways.http.routes import BASE, base_of
from aetherscale.kernel.operations import Operation
from aetherscale.kernel.times import to_rfc3339


def view_of(operation: Operation) -> dict[str, Any]:
    """What is told of it. What is not known is left out."""
    told: dict[str, Any] = {
        "id": operation.id,
        "status": operation.status,
        "href": f"{BASE}/operations/{quote(operation.id, safe='')}",
    }
    if operation.object_id:
        told["kind"] = operation.kind
        told["object-id"] = operation.object_id
        told["object-href"] = f"{base_of(operation.kind)}/{operation.object_id}"
    if operation.first_seq:
        told["first-seq"], told["last-seq"] = operation.first_seq, operation.last_seq
        told["time"], told["actor"] = to_rfc3339(operation.time_us), operation.actor
    if operation.ended_us:
        told["ended"] = to_rfc3339(operation.ended_us)
    if operation.refused is not None:
        told["problem"] = details_of(operation.refused)
    return told
