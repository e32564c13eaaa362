"""One QEMU process, from when it is known until it is gone: its connections, its death, and how it is made to go.

Its death is learnt from its pidfd and from nothing else. A connection to QMP that breaks or hangs says nothing about
the guest: it is tried again, ever more seldom, for as long as the process lives.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from aetherscale.actors.compute.driver import Observe
from aetherscale.actors.compute.model.effects import InitEnded, VmGone
from aetherscale.actors.compute.qemu import programs, terminals
from aetherscale.actors.compute.qemu.agent import AgentPort
from aetherscale.actors.compute.qemu.cards import Cards
from aetherscale.actors.compute.qemu.console import SerialLine
from aetherscale.actors.compute.qemu.guest import Guest
from aetherscale.actors.compute.qemu.identity import machine_uuid
from aetherscale.actors.compute.qemu.layout import AGENT, INIT, QEMU_LOG, QMP, READY, RunRecord, VmDirectory
from aetherscale.actors.compute.qemu.plugs import Plugs
from aetherscale.actors.compute.qemu.ports import InitPort, ReadyPort
from aetherscale.actors.compute.qemu.programs import Programs
from aetherscale.actors.compute.qemu.reports import Chores, Reports
from aetherscale.actors.compute.qemu.session import (
    CharDevice,
    Monitor,
    Rejected,
    RunState,
    Unresponsive,
    Uuid,
    shaped,
    taken,
)
from aetherscale.actors.compute.qemu.terminals import Terminals
from aetherscale.actors.compute.qemu.usernetwork import HUB_WITHOUT_CARD
from aetherscale.bus.tasks import Tasks
from aetherscale.processes import descriptors

log = logging.getLogger(__name__)

LOG_TAIL_BYTES: Final = 2048
_RETRY_MIN_S: Final = 1.0
_RETRY_MAX_S: Final = 30.0
_QUIT_PATIENCE_S: Final = 2.0
HOST_GOES_S: Final = 2.0
"""How long the end of a QEMU by a signal is kept to oneself: where the host goes down, the node ends as well."""
_BY_SIGNAL: Final = "terminating on signal "
"""The last words of QEMU when it heeds SIGTERM, SIGHUP or SIGINT (os-posix.c), which it does in whatever state."""


class Exit(NamedTuple):
    """How a process ended; neither is known where it was not our child."""

    code: int | None = None
    signal: int | None = None


class Machine:
    """A live QEMU of ours. It takes over `pidfd`."""

    def __init__(
        self,
        directory: VmDirectory,
        record: RunRecord,
        pidfd: int,
        line: SerialLine,
        tasks: Tasks,
        observe: Observe,
        why_killed: Callable[[], str],
    ) -> None:
        assert record.pid is not None, "a machine has a process"
        assert record.start_ticks is not None, "a process has a start"
        self.directory = directory
        self.run = record.run
        self.pid = record.pid
        self.start_ticks = record.start_ticks
        self.boot_id = record.boot_id
        self.accelerator = record.accelerator
        self.line = line
        self.exit = Exit()
        self.gone = asyncio.Event()
        self.reports = Reports(observe)
        self._tasks = tasks
        self._chores = Chores(tasks, f"VM {directory.vm_id}")
        self.guest = Guest(directory, record, self._execute, self._chores, self.reports)
        self._plugs = Plugs(directory.vm_id, self._execute, self._give)
        self.terminals = Terminals(self._plugs, tasks)
        self.programs = Programs(self._plugs, tasks)
        self.cards = Cards(self._execute, self._give)
        self._pidfd = pidfd
        self._why_killed = why_killed
        self._monitor: Monitor | None = None
        self._ready_port: ReadyPort | None = None
        self._init_port: InitPort | None = None
        self._has_script = record.gives_script
        self._asked_to_go = False
        self._late: asyncio.TimerHandle | None = None
        self._attaching = asyncio.Lock()
        asyncio.get_running_loop().add_reader(pidfd, self._has_exited)

    def copied(self, descriptor: int) -> int:
        """A copy of a descriptor that QEMU has, which the caller closes. Raises `OSError`."""
        return descriptors.copied(self._pidfd, descriptor)

    # --- connections -------------------------------------------------------------------------------------------------

    async def attach(self, limit_s: float | None = None) -> None:
        """Connect to what is not connected yet. Raises `Unresponsive`, also where it is just dying, and `Rejected`."""
        try:
            # One at a time: a second connection would wait until QEMU has done with the first.
            async with self._attaching:
                await self._attach_ports(limit_s)
                if self._monitor is None:
                    connection = await taken(self.directory.connect, QMP, limit_s)
                    monitor = await Monitor.connect(connection, self._tasks, self._on_event, self._on_lost, limit_s)
                    try:
                        await self.line.connect(monitor)
                    except BaseException:
                        monitor.close()
                        raise
                    self._monitor = monitor
        except OSError as error:
            raise Unresponsive(f"could not connect to QEMU: {error.strerror or error}") from error

    async def _attach_ports(self, limit_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        if self.guest.agent is None or not self.guest.agent.is_open:
            agent = AgentPort()
            connection = await taken(self.directory.connect, AGENT, limit_s)
            await loop.create_unix_connection(lambda: agent, sock=connection)
            self.guest.agent = agent
        if self._ready_port is None or not self._ready_port.is_open:
            ready_port = ReadyPort(lambda: self.guest.is_ready("channel"))
            connection = await taken(self.directory.connect, READY, limit_s)
            await loop.create_unix_connection(lambda: ready_port, sock=connection)
            self._ready_port = ready_port
        if self._has_script and (self._init_port is None or not self._init_port.is_open):
            init_port = InitPort(
                lambda *told: self.reports(InitEnded(self.directory.vm_id, self.run, *told)),
            )
            connection = await taken(self.directory.connect, INIT, limit_s)
            await loop.create_unix_connection(lambda: init_port, sock=connection)
            self._init_port = init_port
            init_port.ask()

    async def reattach(self) -> None:
        """Connect after a restart of the node and catch up on what happened; go on trying where QEMU does not answer.

        The identity of the process is not in doubt here: pid, start and directory were right.
        """
        try:
            await self.catch_up()
        except (Unresponsive, Rejected) as silent:
            log.warning("VM %s, pid %d: %s", self.directory.vm_id, self.pid, silent)
            self._chores.begin("reattach", self._keep_reattaching)

    async def catch_up(self) -> None:
        """Connect, let the guest run if it was not let run yet, and report what happened in the meantime.

        Raises `Unresponsive`, `Rejected`.
        """
        await self.attach()
        uuid = shaped(await self._execute("query-uuid"), Uuid).uuid
        if uuid != machine_uuid(self.directory.vm_id):
            raise Unresponsive(f"it answers for a VM of UUID {uuid}, which is another one")
        status = await self._status()
        if status == "prelaunch":
            await self.run_on()
        else:
            await self.guest.settle(status)
        if self._ready_port is not None:
            self._ready_port.ask()
        devices = shaped(await self._execute("query-chardev"), list[CharDevice])
        self._chores.begin("ports", lambda: self._plugs.clear(devices, (terminals.ID, programs.ID)))
        for device in devices:
            if device.label == "agent" and device.frontend_open:
                self.guest.agent_opened()

    async def _keep_reattaching(self) -> None:
        pause_s = _RETRY_MIN_S
        while not self.gone.is_set():
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RETRY_MAX_S)
            try:
                await self.catch_up()
            except (Unresponsive, Rejected) as silent:
                log.info("VM %s, pid %d: %s", self.directory.vm_id, self.pid, silent)
            else:
                return

    def _on_event(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "VSERPORT_CHANGE" and not data.get("open"):
            self.terminals.port_closed(str(data.get("id")))
            self.programs.port_closed(str(data.get("id")))
        if name == "DEVICE_DELETED":
            self.cards.card_gone(str(data.get("device")))
        self.guest.on_event(name, data)

    def _on_lost(self) -> None:
        self._monitor = None
        if not self.gone.is_set():
            self._chores.begin("reattach", self._keep_reattaching)

    def detach(self) -> None:
        """Let go of everything and leave the process alone; the machine is of no more use."""
        if self._late is not None:
            self._late.cancel()
        if not self.gone.is_set():
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._let_go()
            self.line.close()

    def _let_go(self) -> None:
        self.guest.forget()
        self.terminals.let_go()
        self.programs.let_go()
        if self._monitor is not None:
            self._monitor.close()
        for port in (self.guest.agent, self._ready_port, self._init_port):
            if port is not None:
                port.close()

    def _has_exited(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self.exit = _reap(self._pidfd)
        os.close(self._pidfd)
        self.gone.set()
        self.guest.ended.set()
        self._let_go()
        self.line.finish()
        if not self._asked_to_go:
            self._tell_of_the_end(self.log_tail())

    def _tell_of_the_end(self, log_tail: str) -> None:
        code, number = self.exit
        unknown = "the process was not this node's child" if self.exit == Exit() else ""
        killed = self._why_killed() if unknown or number == signal.SIGKILL else ""
        told = _BY_SIGNAL in log_tail.rpartition("\n")[2]
        detail = "a signal on this host ended QEMU" if told else killed or unknown
        gone = VmGone(self.directory.vm_id, self.run, code, number, detail, log_tail)
        if told:
            # The host may be going down. Then the next node shall find that it was rebooted, and no crash in the log.
            self._late = asyncio.get_running_loop().call_later(HOST_GOES_S, self.reports, gone)
        else:
            self.reports(gone)

    # --- what is asked of QEMU ---------------------------------------------------------------------------------------

    async def _execute(self, command: str, **arguments: object) -> Any:
        if self._monitor is None:
            raise Unresponsive("it is not connected, as one that has just ended or is busy")
        return await self._monitor.execute(command, **arguments)

    async def _give(self, descriptor: int, name: str) -> None:
        if self._monitor is None:
            raise Unresponsive("it is not connected, as one that has just ended or is busy")
        await self._monitor.give(descriptor, name)

    async def ask(self, command: str) -> Any:
        """The answer of QEMU to a question that changes nothing. Raises `Unresponsive`, `Rejected`."""
        return await self._execute(command)

    async def _status(self) -> str:
        return shaped(await self._execute("query-status"), RunState).status

    async def run_on(self) -> None:
        """Let the guest of a QEMU that has just been started run. Raises `Unresponsive`, `Rejected`."""
        await self._execute("cont")
        status = await self._status()
        if status == "prelaunch":
            raise Unresponsive("it was to let the guest run (cont), and does not")
        await self.guest.settle(status)

    async def power_down(self) -> None:
        """Press the ACPI power button. Raises `Unresponsive`, `Rejected`."""
        await self._execute("system_powerdown")

    async def end(self, limit_s: float) -> bool:
        """Make the process go: QMP `quit`, which flushes the disk, then SIGKILL. Whether it is gone in time."""
        self._asked_to_go = True
        try:
            if self._monitor is not None and await self._quit():
                return True
            self._kill()
            return await self.wait_gone(limit_s)
        except asyncio.CancelledError:
            self._asked_to_go = False
            raise

    async def _quit(self) -> bool:
        try:
            async with asyncio.timeout(_QUIT_PATIENCE_S):
                await self._execute("quit")
        except (Unresponsive, Rejected, TimeoutError):
            # It may have gone without an answer: a connection that broke is given a moment.
            return await self.wait_gone(0.1)
        return await self.wait_gone(_QUIT_PATIENCE_S)

    def _kill(self) -> None:
        if not self.gone.is_set():
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                # It has ended; the pidfd says so in a moment.
                return

    async def wait_gone(self, limit_s: float) -> bool:
        """Wait for the process's end, at most so long. Whether it came."""
        try:
            async with asyncio.timeout(limit_s):
                await self.gone.wait()
        except TimeoutError:
            return self.gone.is_set()
        return True

    def log_tail(self) -> str:
        """The end of what QEMU has said on stderr; empty where it cannot be read."""
        try:
            said = self.directory.tail(QEMU_LOG, LOG_TAIL_BYTES).decode(errors="replace")
        except OSError as error:
            log.warning("VM %s: %s cannot be read: %s", self.directory.vm_id, QEMU_LOG, error)
            return ""
        return "\n".join(line for line in said.splitlines() if not line.endswith(HUB_WITHOUT_CARD)).strip()


def _reap(pidfd: int) -> Exit:
    try:
        status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return Exit()
    if status is None:
        return Exit()
    if status.si_code == os.CLD_EXITED:
        return Exit(code=status.si_status)
    return Exit(signal=status.si_status)
