"""Compute, put together: its tasks, what they look up, and how its effects reach the driver."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final, Literal

from msgspec import Struct

from aetherscale.actors.compute import logs
from aetherscale.actors.compute.console import Consoles, Program, Session
from aetherscale.actors.compute.driver import ComputeDriver, Process, Window
from aetherscale.actors.compute.model import commands, effects, events
from aetherscale.actors.compute.model.commands import (
    ConsoleInputOptions,
    CreateVmOptions,
    ExecOptions,
    ListVmsOptions,
    LogsOptions,
    StopVmOptions,
    VmOptions,
)
from aetherscale.actors.compute.model.decide import COMPUTE, ComputeMessage
from aetherscale.actors.compute.model.effects import ComputeObservation, ReadyChannel
from aetherscale.actors.compute.model.presentation import VM_KIND, announce, reservations, settle, view
from aetherscale.actors.compute.model.sentences import held
from aetherscale.actors.compute.model.state import ProcessIdentity, Vm
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.names import derive_id
from aetherscale.kernel.registry import Aggregate, Registry
from aetherscale.kernel.replies import Chunk, Kept, item, result, status
from aetherscale.kernel.reservations import Seen
from aetherscale.kernel.wire import encode
from aetherscale.runtime.actor import Actor
from aetherscale.runtime.component import CommandTask, Component, Progress, QueryTask

log = logging.getLogger(__name__)

NAME: Final = "compute"
EXEC_OUTPUT_BYTES: Final = 400 * 1024
"""What is told of each of the two outputs of a program in a guest, as JSON: both together fit into one message."""
BOOTS_AT_ONCE: Final = max(4, os.cpu_count() or 1)
"""QEMUs that are being started at the same time; after a reboot of the host, in the order of their creation."""
ADOPT_AT_ONCE: Final = 32
"""VMs that are looked for at the same time after a restart of the node."""


class BaseImage(Struct, frozen=True):
    """What compute needs to know of an image."""

    id: str
    name: str
    format: Literal["qcow2", "raw"]
    size_bytes: int
    virtual_size_mib: int
    ready_channel: ReadyChannel
    seen: Seen
    """The image as it is found: whatever changes it has a VM that was to be made of it decided on anew."""


FindImage = Callable[[str, str], BaseImage]
"""The image of a tenant by name or id. Raises `Refused` (404, 409) where there is none, or none that can be used."""


class Compute:
    """The tasks of compute on one registry and one driver."""

    def __init__(self, node: str, registry: Registry[Vm], driver: ComputeDriver, find_image: FindImage) -> None:
        self._node = node
        self._registry = registry
        self._driver = driver
        self._find_image = find_image
        self._consoles = Consoles(driver)
        self._boots = asyncio.Semaphore(BOOTS_AT_ONCE)
        self._items: dict[str, Kept] = {}
        """What a list says of each VM that is there, as of its view's `revision`."""

    def component(self) -> Component[Vm, ComputeMessage]:
        """The component as the actor runs it."""
        return Component(
            name=NAME,
            kind=VM_KIND,
            decider=COMPUTE,
            reservations=reservations,
            announce=announce,
            settle=settle,
            result=self._result,
            perform=self._perform,
            failed=_failed,
            gate=lambda effect: self._boots if isinstance(effect, effects.BootVm) else nullcontext(),
            commands={
                "create-vm": CommandTask(CreateVmOptions, self._new_id, self._create, seen=self._seen_by_create),
                "start-vm": CommandTask(
                    VmOptions, self._target, lambda o, c, vm_id: commands.StartVm(vm_id), _reference
                ),
                "stop-vm": CommandTask(
                    StopVmOptions,
                    self._target,
                    lambda o, c, vm_id: commands.StopVm(vm_id, o.kill, o.grace_s),
                    _reference,
                    urgent=True,
                ),
                "restart-vm": CommandTask(
                    VmOptions, self._target, lambda o, c, vm_id: commands.RestartVm(vm_id), _reference
                ),
                "delete-vm": CommandTask(
                    StopVmOptions,
                    self._target,
                    lambda o, c, vm_id: commands.DeleteVm(vm_id, o.kill, o.grace_s),
                    _reference,
                    urgent=True,
                ),
            },
            queries={
                "list-vms": QueryTask(ListVmsOptions, self._list),
                "vm-info": QueryTask(VmOptions, self._info),
                "vm-logs": QueryTask(LogsOptions, self._logs),
                "exec-vm": QueryTask(ExecOptions, self._exec),
                "vm-console": QueryTask(commands.ConsoleOptions, self._console),
                "vm-terminal": QueryTask(commands.TerminalOptions, self._terminal),
                "console-input": QueryTask(ConsoleInputOptions, self._consoles.typed),
            },
        )

    # --- commands ------------------------------------------------------------------------------------------------

    def _new_id(self, options: CreateVmOptions, call: Call) -> str:
        _only_what_works(options)
        if options.node not in (None, self._node):
            raise Refused(
                404, f"this is node {self._node!r}, not {options.node!r}", field="node", hint="aetherscale node list"
            )
        return derive_id(self._node, call.tenant, call.command_id)

    def _create(self, options: CreateVmOptions, call: Call, vm_id: str) -> commands.CreateVm:
        image = self._find_image(call.tenant, options.image)
        name = options.name or f"vm-{vm_id[:8]}"
        bearer = self._registry.named(events.KIND, call.tenant, name)
        if bearer is not None and bearer.id != vm_id:
            raise Refused(
                409,
                f"a VM named {name!r} exists already (it is {bearer.state.phase})",
                field="name",
                hint=f"take another name, or: aetherscale vm delete {name}",
                details={"vm-id": bearer.id},
            )
        disk_mib = (options.disk_gib or commands.DEFAULT_DISK_GIB) * 1024
        if options.disk_gib is None:
            disk_mib = max(disk_mib, image.virtual_size_mib)
        elif disk_mib < image.virtual_size_mib:
            raise Refused(
                400,
                f"a disk of {options.disk_gib} GiB is too small for the image: it needs {image.virtual_size_mib} MiB",
                field="disk-gib",
            )
        spec = commands.VmSpec(
            name=name,
            image_id=image.id,
            image=image.name,
            image_format=image.format,
            image_size_bytes=image.size_bytes,
            ready_channel=image.ready_channel,
            cpus=options.cpus,
            memory_mib=options.memory_mib,
            disk_mib=disk_mib,
            restart=options.restart,
            autostart=options.autostart,
            labels=options.labels,
        )
        return commands.CreateVm(vm_id, spec)

    def _seen_by_create(self, options: CreateVmOptions, call: Call, vm_id: str) -> Sequence[Seen]:
        return (self._find_image(call.tenant, options.image).seen,)

    def _target(self, options: Any, call: Call) -> str:
        return self._find(options.vm_id, call).id

    def _find(self, reference: str, call: Call) -> Aggregate[Vm]:
        """The VM that is meant; a deleted one is found by its id alone."""
        reference = call.object_id or reference
        if not reference:
            raise Refused(400, f"{NAME}.{call.task}: the field 'vm-id' is missing", field="vm-id")
        found = self._registry.find(events.KIND, call.tenant, reference)
        if found is None:
            raise Refused(404, f"no such VM: {reference!r}", field="vm-id", hint="aetherscale vm list")
        return found

    # --- queries -------------------------------------------------------------------------------------------------

    def _result(self, aggregate: Aggregate[Vm]) -> Mapping[str, Any]:
        return {"vm-id": aggregate.id, "vm": self._item(aggregate)["vm"]}

    def _item(self, aggregate: Aggregate[Vm]) -> Kept:
        known = self._items.get(aggregate.id)
        if known is None or known["vm"].revision != aggregate.version:
            seen = view(aggregate.state, self._node, aggregate.version, aggregate.requested_by)
            known = Kept(item({"vm-id": aggregate.id, "vm": seen}))
            if aggregate.state.phase == "deleted":
                self._items.pop(aggregate.id, None)
            else:
                self._items[aggregate.id] = known
        return known

    async def _list(self, options: ListVmsOptions, call: Call) -> AsyncIterator[Chunk]:
        wanted = [
            aggregate
            for aggregate in self._registry.of_tenant(call.tenant)
            if (options.all or aggregate.state.phase != "deleted")
            and options.labels.items() <= aggregate.state.spec.labels.items()
        ]
        wanted.sort(key=lambda aggregate: (aggregate.state.name, aggregate.id))
        for aggregate in wanted:
            yield self._item(aggregate)
        yield result({"count": len(wanted)})

    async def _info(self, options: VmOptions, call: Call) -> AsyncIterator[Chunk]:
        aggregate = self._find(options.vm_id, call)
        yield result({**self._result(aggregate), "host": self._driver.on_host(aggregate.id)})

    async def _logs(self, options: LogsOptions, call: Call) -> AsyncIterator[Chunk]:
        vm = self._alive(options.vm_id, call)
        async for chunk in logs.told(self._driver, vm.id, options):
            yield chunk
        yield result({"vm-id": vm.id})

    async def _exec(self, options: ExecOptions, call: Call) -> AsyncIterator[Chunk]:
        vm = self._alive(options.vm_id, call)
        _refuse_paused(vm.state)
        try:
            ended = await self._driver.execute(vm.id, options.command, options.timeout_s, options.stdin)
        except Refused:
            _refuse_paused(self._alive(vm.id, call).state)
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

    async def _console(self, options: commands.ConsoleOptions, call: Call) -> AsyncIterator[Chunk]:
        vm = self._alive(options.vm_id, call)
        attached = self._consoles.attached(vm.id, call.tenant, options.session, options.window_bytes)
        async for chunk in self._relayed(attached, vm.id, options.session):
            yield chunk

    async def _terminal(self, options: commands.TerminalOptions, call: Call) -> AsyncIterator[Chunk]:
        vm = self._alive(options.vm_id, call)
        _refuse_paused(vm.state)
        yield status("progress", vm_id=vm.id, step="starting the program")
        program = Program(options.command, Window(options.rows, options.columns), options.term)
        attached = self._consoles.attached(vm.id, call.tenant, options.session, options.window_bytes, program)
        try:
            async for chunk in self._relayed(attached, vm.id, options.session):
                yield chunk
        except Refused:
            _refuse_paused(self._alive(vm.id, call).state)
            raise

    async def _relayed(
        self, attached: AbstractAsyncContextManager[Session], vm_id: str, name: str
    ) -> AsyncIterator[Chunk]:
        """What a session says, from `attached` to its result."""
        async with attached as session:
            past_bytes = session.console.past_bytes
            yield status("attached", vm_id=vm_id, node=self._node, session=name, history_bytes=past_bytes)
            async for data in session.output():
                yield item({"data": base64.b64encode(data).decode()})
        told = {"vm-id": vm_id, "reason": session.reason}
        yield result(told if session.terminal is None else {**told, "exit-code": session.terminal.exit_code})

    def _alive(self, reference: str, call: Call) -> Aggregate[Vm]:
        aggregate = self._find(reference, call)
        if aggregate.state.phase == "deleted":
            raise Refused(404, f"no such VM: {reference!r} has been deleted", field="vm-id")
        return aggregate

    # --- the host ------------------------------------------------------------------------------------------------

    async def _perform(self, effect: effects.ComputeEffect, progress: Progress) -> ComputeMessage:
        vm_id = effect.vm_id
        return await self._driver.perform(effect, lambda word: progress(status("progress", vm_id=vm_id, step=word)))

    async def reconcile(self, actor: Actor[Vm, ComputeMessage], boot_id: str) -> None:
        """Compare what should run with what is observed: adopt what is alive, and notice what is gone.

        What the host has of a VM that should have nothing there is told too; nobody's disk is ever thrown away for it.
        """
        gate = asyncio.Semaphore(ADOPT_AT_ONCE)

        async def find(vm: Vm, identity: ProcessIdentity) -> None:
            process = Process(
                vm.id, vm.run, identity.pid, identity.start_ticks, identity.boot_id, vm.spec.ready_channel
            )
            async with gate:
                alive = await self._driver.adopt(process)
            finding = commands.VmAdopted(vm.id, vm.run) if alive else commands.VmLost(vm.id, vm.run, boot_id)
            await actor.tell(vm.id, finding)

        vms = [aggregate.state for aggregate in self._registry.aggregates.values()]
        await asyncio.gather(
            *(find(vm, vm.process) for vm in vms if vm.process and not self._driver.watches(vm.id, vm.run))
        )
        before = dict(self._registry.aggregates)
        for found in await self._driver.inventory():
            aggregate = self._registry.aggregates.get(found.vm_id)
            stray = commands.VmStray(found.vm_id, found.has_process, found.has_directory)
            # Of one that has moved on meanwhile, what was seen may be long over.
            if aggregate is before.get(found.vm_id) and COMPUTE.decide(
                aggregate.state if aggregate else None, stray, 0
            ):
                log.warning("the host has of VM %s what it should not have: aetherscale why vm %s", *[found.vm_id] * 2)
                await actor.tell(found.vm_id, stray)

    async def observe(self, actor: Actor[Vm, ComputeMessage]) -> None:
        """Hear from now on what the host says unasked."""

        def tell(observation: ComputeObservation) -> None:
            actor.tell(observation.vm_id, observation)

        await self._driver.start(tell)


def _reference(options: VmOptions | StopVmOptions, call: Call) -> str:
    """What the VM is called by."""
    return call.object_id or options.vm_id


def _fitting(output: bytes) -> tuple[str, bool]:
    """What a program printed, as text that fits into a message however it has to be escaped; whether it was cut."""
    text = output.decode("utf-8", "replace")
    cut = False
    while (size := len(encode(text))) > EXEC_OUTPUT_BYTES:
        text, cut = text[: len(text) * EXEC_OUTPUT_BYTES // size], True
    return text, cut


def _refuse_paused(vm: Vm) -> None:
    """Nothing in a guest answers while QEMU holds it."""
    if vm.phase == "paused":
        what, way_on = held(vm)
        raise Refused(409, what, hint=way_on, retryable=True, details={"vm-id": vm.id, "phase": vm.phase})


def _failed(effect: effects.ComputeEffect, reason: str) -> ComputeMessage:
    return effects.EffectFailed(effect.key, reason)


def _only_what_works(options: CreateVmOptions) -> None:
    """Refuse the options of components that this version does not have: never accept and ignore."""
    later = {
        "virtual-network": options.virtual_network,
        "vpn": options.vpn,
        "public-ip": options.public_ip,
        "init-script": options.init_script,
        "ssh-keys": options.ssh_keys,
        "groups": options.groups,
    }
    for field, value in later.items():
        if value:
            raise Refused(
                501,
                f"the option {field!r} does not work in this version",
                field=field,
                hint="leave it out: a VM has user-mode networking",
            )
