"""The queries of compute beyond aggregates: logs, consoles, programs in guests. One for each process of the node."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from msgspec.structs import replace

from aetherscale.actors.compute import logs
from aetherscale.actors.compute.console import Attached, Consoles, Session
from aetherscale.actors.compute.driver import ComputeDriver, Window
from aetherscale.actors.compute.model.commands import LogsOptions, VmOptions
from aetherscale.actors.compute.model.events import KIND
from aetherscale.actors.compute.model.rulecommands import GROUP, ListForwardsOptions, lets_in
from aetherscale.actors.compute.model.sentences import describe_pause
from aetherscale.actors.compute.model.sessioncommands import (
    ConsoleInputOptions,
    ConsoleOptions,
    ExecOptions,
    ProgramOptions,
    TerminalOptions,
)
from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.compute.rules import versions_led
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.registry import Aggregate
from aetherscale.kernel.replies import Chunk, item, result, status
from aetherscale.kernel.wire import encode
from aetherscale.runtime.component import World

EXEC_OUTPUT_BYTES: Final = 400 * 1024
"""The size in JSON to which each of the two outputs of a program is cut: both together fit into one message."""


class ComputeService:
    """Answers the queries of compute that ask the host."""

    def __init__(self, world: World, driver: ComputeDriver) -> None:
        self._world = world
        self._driver = driver
        self._consoles = Consoles()

    async def info(self, options: VmOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `vm-info`, with its process and directory on the host. Raises `Refused`."""
        aggregate = self._world.referred(KIND, options, call)
        on_host, cards = self._driver.on_host(aggregate.id), aggregate.state.run.cards
        # A port whose card the guest has not yet, or no more, has not lost its tap.
        on_host = replace(on_host, cut=[tap for tap in on_host.cut if tap in cards])
        yield result({**self._world.fields(KIND, aggregate), "host": on_host})

    async def guest(self, options: VmOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `guest-info`. Raises `Refused`."""
        vm = self._alive(options, call)
        _refuse_paused(vm.state)
        yield result({"vm-id": vm.id, "guest": await self._driver.facts(vm.id)})

    async def forwards(self, options: ListForwardsOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `list-forwards`. Raises `Refused`."""
        named = call.object_id or options.vm_id
        vms = [self._alive(options, call)] if named else self._world.of_tenant(KIND, call.tenant)
        found = [(vm, forward) for vm in vms for forward in vm.state.rules.forwards]
        for vm, forward in sorted(found, key=lambda each: (each[1].host_port, each[1].protocol, each[0].id)):
            groups = [self._world.view(GROUP, call.tenant, group.group_id) for group in vm.state.rules.groups]
            versions = versions_led(self._world, call.tenant, vm.state.ports.staying(), forward)
            rules = [rule for group in groups for rule in group.rules if lets_in(rule, forward, versions)]
            prefixes = {rule.cidr for rule in rules}
            whence = [] if None in prefixes else sorted(prefixes)
            told = {"vm-id": vm.id, "name": vm.state.name, "forward": forward, "let-in": bool(rules), "from": whence}
            yield item({**told, "rule": f"in:{forward.protocol}:{forward.guest_port}"})
        yield result({"count": len(found)})

    async def logs(self, options: LogsOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `vm-logs`. Raises `Refused`."""
        vm = self._alive(options, call)
        async for chunk in logs.told(self._driver, vm.id, options):
            yield chunk
        yield result({"vm-id": vm.id})

    async def execute(self, options: ExecOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `exec-vm`. Raises `Refused`."""
        vm = self._alive(options, call)
        _refuse_paused(vm.state)
        try:
            ended = await self._driver.execute(vm.id, options.command, options.timeout_s, options.stdin)
        except Refused:
            _refuse_paused(self._living(vm.id, vm.id, call).state)
            raise
        (stdout, cut_out), (stderr, cut_err) = _fitting(ended.stdout), _fitting(ended.stderr)
        yield result(
            {
                "vm-id": vm.id,
                "exit-code": ended.exit_code,
                "signal": ended.signal,
                "stdout": stdout,
                "stderr": stderr,
                "truncated": ended.truncated or cut_out or cut_err,
            }
        )

    async def console(self, options: ConsoleOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `vm-console`. Raises `Refused`."""
        vm = self._alive(options, call)

        async def reach() -> Attached:
            line = await self._driver.console(vm.id, options.tail_bytes)
            return Attached(line, past_bytes=line.past_bytes)

        attached = self._consoles.attached(reach, call.tenant, options.session, options.window_bytes)
        async for chunk in self._relayed(attached, vm.id, options.session):
            yield chunk

    async def terminal(self, options: TerminalOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `vm-terminal`. Raises `Refused`."""
        vm = self._alive(options, call)
        _refuse_paused(vm.state)
        window = Window(options.rows, options.columns)

        async def reach() -> Attached:
            terminal = await self._driver.terminal(vm.id, options.command, window, options.term)
            return Attached(terminal, terminal=terminal)

        async for chunk in self._begun(reach, vm.id, options, call):
            yield chunk

    async def program(self, options: ProgramOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `vm-program`. Raises `Refused`."""
        vm = self._alive(options, call)
        _refuse_paused(vm.state)

        async def reach() -> Attached:
            program = await self._driver.program(vm.id, options.command, has_input=options.has_input)
            return Attached(program, program=program)

        async for chunk in self._begun(reach, vm.id, options, call):
            yield chunk

    async def _begun(
        self,
        reach: Callable[[], Awaitable[Attached]],
        vm_id: str,
        options: TerminalOptions | ProgramOptions,
        call: Call,
    ) -> AsyncIterator[Chunk]:
        yield status("progress", vm_id=vm_id, step="starting the program")
        attached = self._consoles.attached(reach, call.tenant, options.session, options.window_bytes)
        try:
            async for chunk in self._relayed(attached, vm_id, options.session):
                yield chunk
        except Refused:
            _refuse_paused(self._living(vm_id, vm_id, call).state)
            raise

    async def _relayed(
        self, attached: AbstractAsyncContextManager[Session], vm_id: str, name: str
    ) -> AsyncIterator[Chunk]:
        """The chunks of a session, from `attached` to its result."""
        async with attached as session:
            told = {"pid": session.program.pid} if session.program else {"history_bytes": session.past_bytes}
            yield status("attached", vm_id=vm_id, node=self._world.node, session=name, **told)
            async for piece in session.output():
                yield item({"error-data" if piece.is_error else "data": base64.b64encode(piece.data).decode()})
        end = {"vm-id": vm_id, "reason": session.reason}
        ended = session.terminal or session.program
        yield result(end | ({"exit-code": ended.exit_code} if ended is not None else {}))

    def typed(self, options: ConsoleInputOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `console-input`. Raises `Refused`."""
        return self._consoles.typed(options, call)

    def _alive(self, options: Any, call: Call) -> Aggregate[Vm]:
        vm_id = self._world.referred(KIND, options, call).id
        return self._living(vm_id, call.object_id or options.vm_id, call)

    def _living(self, vm_id: str, reference: str, call: Call) -> Aggregate[Vm]:
        aggregate = self._world.find(KIND, call.tenant, vm_id)
        if aggregate.state.phase == "deleted":
            raise Refused(Reason.NOT_FOUND, f"no such VM: {reference!r} has been deleted", field="vm-id")
        return aggregate


def _fitting(output: bytes) -> tuple[str, bool]:
    """The output of a program, as text that fits into a message however it has to be escaped; whether it was cut."""
    text = output.decode("utf-8", "replace")
    cut = False
    while (size := len(encode(text))) > EXEC_OUTPUT_BYTES:
        text, cut = text[: len(text) * EXEC_OUTPUT_BYTES // size], True
    return text, cut


def _refuse_paused(vm: Vm) -> None:
    """Nothing in a guest answers while QEMU holds it."""
    if vm.phase == "paused":
        what, way_on = describe_pause(vm)
        raise Refused(Reason.CONFLICT, what, remedy=way_on, retryable=True, details={"vm-id": vm.id, "phase": vm.phase})
