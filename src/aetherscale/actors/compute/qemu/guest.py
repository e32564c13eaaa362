"""What a guest does, read from QEMU's events and states: it gets ready, it ends, it is paused, it is resumed.

    QMP SHUTDOWN (guest), GUEST_PANICKED ─▶ GuestEnded      QEMU stays, paused
    BLOCK_IO_ERROR (no space), other STOP ─▶ GuestPaused         RESUME ─▶ GuestResumed
    agent answers, line `ready`           ─▶ GuestReady     once

After the node was away `query-status` says the same as the events that nobody heard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal

from aetherscale.actors.compute.model.effects import (
    GuestEnded,
    GuestPaused,
    GuestReady,
    GuestResumed,
    PauseReason,
    ReadyChannel,
)
from aetherscale.actors.compute.qemu.agent import AgentPort, AgentRefused, AgentSilent
from aetherscale.actors.compute.qemu.layout import RunRecord, VmDirectory
from aetherscale.actors.compute.qemu.reports import Chores, Reports
from aetherscale.actors.compute.qemu.session import BlockDevice, Rejected, RunState, Unresponsive, shaped
from aetherscale.kernel.errors import Reason, Refused, Task

log = logging.getLogger(__name__)

ROOM_TO_GO_ON_BYTES: Final = 64 * 1024 * 1024
ROOM_CHECK_S: Final = 2.0
_PING_MIN_S: Final = 1.0
_PING_MAX_S: Final = 30.0
_AGENT_WAIT_S: Final = 3.0
_PANIC: Final = "the end of the serial log says why"

Execute = Callable[[str], Awaitable[Any]]
"""Run a QMP command. Raises `Unresponsive`, `Rejected`."""


class Guest:
    """One run of one guest."""

    def __init__(
        self, directory: VmDirectory, record: RunRecord, execute: Execute, chores: Chores, report: Reports
    ) -> None:
        self.vm_id = directory.vm_id
        self.run = record.run
        self.ended = asyncio.Event()
        """The guest has ended, whether or not its process has."""
        self.agent: AgentPort | None = None
        """There once there is a connection to its port; the guest may not have opened its end."""
        self.agent_open = asyncio.Event()
        self._directory = directory
        self._channel: ReadyChannel = record.ready_channel
        self._accelerator = record.accelerator
        self._execute = execute
        self._chores = chores
        self._report = report
        self._is_ready = False
        self._paused_for: PauseReason | None = None
        self._room_check: asyncio.TimerHandle | None = None
        self._over = asyncio.Event()
        """The process is gone, or no longer watched."""

    async def answering(self) -> AgentPort:
        """The agent, which is given a moment to begin.

        Raises `Refused`: unavailable where there is none, conflict where the VM ends meanwhile.
        """
        waiting = [asyncio.ensure_future(each.wait()) for each in (self.agent_open, self._over)]  # noqa: TID251 - ended below
        try:
            await asyncio.wait(waiting, timeout=_AGENT_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        if self._over.is_set():
            raise Refused(Reason.CONFLICT, "the VM is not running", remedy=Task("vm", "start", self.vm_id))
        if not self.agent_open.is_set():
            raise Refused(
                Reason.UNAVAILABLE,
                "no guest agent answers in this VM",
                remedy=("its image needs qemu-guest-agent; or: ", Task("vm", "console", self.vm_id)),
                retryable=True,
            )
        assert self.agent is not None, "the port that was opened is connected"
        return self.agent

    def forget(self) -> None:
        """Stop all that goes on beside: the process is gone, or no longer watched."""
        self._over.set()
        if self._room_check is not None:
            self._room_check.cancel()

    def on_event(self, name: str, data: Mapping[str, Any]) -> None:
        """Take a QMP event."""
        match name:
            case "SHUTDOWN" if data.get("guest"):
                self._has_ended("shutdown", "")
            case "GUEST_PANICKED":
                self._has_ended("panic", _PANIC)
            case "BLOCK_IO_ERROR" if data.get("action") == "stop":
                self._pauses("disk" if data.get("nospace") else "io-error", str(data.get("reason", ""))[:256])
            case "STOP":
                if not self.ended.is_set() and self._paused_for is None:
                    self._chores.begin("settle", self._settle_quietly)
            case "RESUME":
                self._resumes()
            case "VSERPORT_CHANGE" if data.get("id") == "agent-port":
                if data.get("open"):
                    self.agent_opened()
                else:
                    self.agent_open.clear()

    async def settle(self, status: str | None = None) -> None:
        """Ask which state QEMU is in, unless it is known, and report it. Raises `Unresponsive`, `Rejected`."""
        if status is None:
            status = shaped(await self._execute("query-status"), RunState).status
        match status:
            case "shutdown":
                self._has_ended("shutdown", "")
            case "guest-panicked":
                self._has_ended("panic", _PANIC)
            case "internal-error":
                self._pauses("internal-error", _internal_error(self._accelerator))
            case "io-error":
                self._pauses(await self._io_error(), "QEMU could not write the VM's disk")
            case "paused":
                self._pauses("user", "paused through QMP by a program other than this node")
            case _:
                # It runs, or sleeps by its own wish, or QEMU does something that will end by itself.
                return

    async def _settle_quietly(self) -> None:
        try:
            await self.settle()
        except (Unresponsive, Rejected) as silent:
            log.warning("VM %s has stopped: %s", self.vm_id, silent)

    async def _io_error(self) -> PauseReason:
        devices = shaped(await self._execute("query-block"), list[BlockDevice])
        return "disk" if any(device.io_status == "nospace" for device in devices) else "io-error"

    def _has_ended(self, reason: Literal["shutdown", "panic"], detail: str) -> None:
        if not self.ended.is_set():
            self.ended.set()
            self._report(GuestEnded(self.vm_id, self.run, reason, detail))

    # --- paused and resumed ------------------------------------------------------------------------------------------

    def _pauses(self, reason: PauseReason, detail: str) -> None:
        if self._paused_for != reason:
            self._paused_for = reason
            self._report(GuestPaused(self.vm_id, self.run, reason, detail))
        if reason == "disk":
            self._check_room_later()

    def _resumes(self) -> None:
        if self._paused_for is not None:
            self._paused_for = None
            self._report(GuestResumed(self.vm_id, self.run))

    def _check_room_later(self) -> None:
        if self._room_check is not None:
            self._room_check.cancel()
        self._room_check = asyncio.get_running_loop().call_later(ROOM_CHECK_S, self._check_room)

    def _check_room(self) -> None:
        # The kernel does not report when a file system has room again, so it is polled while a guest waits for it.
        if self._over.is_set() or self._paused_for != "disk":
            return
        if self._directory.free_bytes() >= ROOM_TO_GO_ON_BYTES:
            self._chores.begin("resume", self._resume)
        self._check_room_later()

    async def _resume(self) -> None:
        try:
            await self._execute("cont")
        except (Unresponsive, Rejected) as silent:
            log.warning("VM %s could not be resumed: %s", self.vm_id, silent)

    # --- ready -------------------------------------------------------------------------------------------------------

    def agent_opened(self) -> None:
        """The guest has opened the agent's port: the agent may answer."""
        self.agent_open.set()
        # Where the image has a channel of its own, an agent that starts before the rest says nothing.
        if self._channel != "channel":
            self._chores.begin("greet the agent", self._greet_agent)

    async def _greet_agent(self) -> None:
        pause_s = _PING_MIN_S
        while self.agent_open.is_set() and self.agent is not None and not (self._is_ready or self._over.is_set()):
            try:
                await self.agent.ping()
            except (AgentSilent, AgentRefused) as silent:
                log.info("VM %s: the guest agent's port is open, yet: %s", self.vm_id, silent)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _PING_MAX_S)
            else:
                self.is_ready("agent")

    def is_ready(self, channel: ReadyChannel) -> None:
        """The inside of the guest has said so."""
        if not self._is_ready:
            self._is_ready = True
            self._report(GuestReady(self.vm_id, self.run, channel))


def _internal_error(accelerator: str) -> str:
    if accelerator == "kvm":
        return (
            "KVM on this host cannot go on with this guest (QEMU says: internal-error); restart the node with "
            "`--accelerator tcg`, or with `--accelerator auto`, which no longer trusts KVM, and then restart the VM"
        )
    return "QEMU says: internal-error; kill the VM and start it again, and look at its qemu.log"
