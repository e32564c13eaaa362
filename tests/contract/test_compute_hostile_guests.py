"""A guest whose agent hangs, floods or lies, as every compute driver sees it: on the simulated host and real QEMU.

Real guests run a shell script in place of their agent, on its port. What bytes may do to the client of an agent is
tried in tests/unit/actors/compute/qemu/test_guest_agent.py; here, what callers see of it.
"""

from __future__ import annotations

import asyncio

import pytest

from aetherscale.actors.compute.driver import ComputeDriver
from aetherscale.actors.compute.model.effects import Ended, GuestReady
from aetherscale.kernel.errors import Reason, Refused
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import (
    PATIENCE_S,
    TINY,
    VM,
    SimulatedWorld,
    Watcher,
    World,
    agent_answers,
    booted,
    ensure,
    read_until,
)
from tests.support.driver_fixtures import END, driver, watcher, world

__all__ = ["driver", "qemu_world", "tiny_image_file", "watcher", "world"]

LIES = {
    "nothing": "exec sleep 1000000",
    "a flood of 0xFF": "while :; do head -c 65536 /dev/zero | tr '\\000' '\\377'; done >&3",
    "64 KiB of brackets to each call": (
        "while read -r line <&3; do head -c 65536 /dev/zero | tr '\\000' '['; echo; done >&3"
    ),
    "answers to nobody": (
        "while read -r line <&3; do printf '\\377'; "
        'echo \'{"return": 7, "error": {"desc": 1}}\'; echo \'{"return": {"pid": "7", "exited": true}}\'; done >&3'
    ),
    "half an answer": "while read -r line <&3; do printf '\\377{\"return\": 1'; done >&3",
}
"""By what the agent says, the script that says it: 3 is its port."""


async def lie(world: World, driver: ComputeDriver, name: str) -> None:
    """Put a liar in the place of the guest's agent."""
    if isinstance(world, SimulatedWorld):
        process = world.host.live(VM)
        assert process is not None
        process.agent_lies = True
        return
    script = (
        f"#!/bin/sh\\nexec 3<> $(virtio-port org.qemu.guest_agent.0)\\necho it is lying > /dev/ttyS0\\n{LIES[name]}"
    )
    quoted = script.replace("\\n", "\n").replace("'", "'\\''")
    console = await driver.console(VM)
    await console.send(f"printf '%s\\n' '{quoted}' > /usr/sbin/guest-agent; killall -9 qemu-ga\n".encode())
    await read_until(console.output(), b"it is lying\r\n")
    await console.close()


@pytest.mark.parametrize("name", LIES)
async def test_a_liar_is_told_as_silent_within_its_time_and_harms_nobody(
    world: World, driver: ComputeDriver, watcher: Watcher, name: str
) -> None:
    await booted(driver, TINY, ready="agent")
    await watcher.until(GuestReady)
    await agent_answers(driver)
    await lie(world, driver, name)
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(Refused) as refused:
            await driver.execute(VM, ["true"], PATIENCE_S)
        assert (refused.value.reason, refused.value.retryable) == (Reason.UNAVAILABLE, True)
        assert "no answer from the guest agent: " in refused.value.message
        with pytest.raises(Refused) as refused:
            await driver.program(VM, ["true"], has_input=False)
        assert refused.value.retryable
        said = await driver.facts(VM)
        assert (said.agent, said.os, said.addresses, said.disks) == ("silent", None, None, None)
    assert world.processes(VM) == 1
    await ensure(driver, END, Ended)
    assert world.processes(VM) == 0
