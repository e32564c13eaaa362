"""Whose process the resolver of a network is: refused where it would be root's or the node's, as QEMU is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from aetherscale.actors.network.driver import HostNetworking
from aetherscale.actors.network.model.effects import NetworkKind
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.fault import Fault
from aetherscale.processes import users
from tests.support.network_namespaces import missing
from tests.support.network_worlds import BOOT, kernel
from tests.support.resolver_world import NODE, WEB, World, network, world

__all__ = ["world"]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is not installed"),
]


async def test_no_network_that_has_a_resolver_is_made_until_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "way", lambda: "none")
    async with kernel(tmp_path / "state"):
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        strict, lenient = (
            HostNetworking(NODE, BOOT, tmp_path / "state", allow_unisolated=allowed) for allowed in (False, True)
        )
        kinds: tuple[NetworkKind, ...] = ("isolated", "nat")
        for kind in kinds:
            with pytest.raises(Refused, match="this node cannot make networks: dnsmasq would run as root") as refused:
                strict.require(kind)
            assert refused.value.reason is Reason.NOT_IMPLEMENTED
            assert "aetherscale serve --allow-unisolated" in str(refused.value.remedy)
            lenient.require(kind)
        # A bridge of the host has no resolver of ours.
        strict.require("bridged")


async def test_one_that_runs_is_kept_and_none_is_started(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that had a way to a user of its own has lost it since, as a host that was set up anew."""
    pid = await world.ensure(network(), WEB)
    monkeypatch.setattr(users, "way", lambda: "none")
    assert await world.ensure(network(), WEB) == pid
    os.kill(pid, 9)
    await world.end_told.wait()
    with pytest.raises(Fault, match="dnsmasq would run as root") as fault:
        await world.ensure(network(), WEB)
    assert fault.value.retryable is False
    assert world.processes() == []
