"""What the log adds up to, by rules of its own: written from the documents, without the product's fold.

It knows events by their names and payloads alone, and keeps no more than what can be seen from outside. Where it and
the node disagree on any field of any view, one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from aetherscale.eventstore.store import StoredEvent
from tests.simulation import inits
from tests.simulation.oracle_networks import ToldGroup, ToldNetwork
from tests.simulation.oracle_of_ports import ToldPorts
from tests.simulation.telling import Data, Told, View

FAILURES: Final = ("panic", "crash", "unknown")
UP: Final = ("running", "ready", "paused")
ENDS: Final = {
    "user": "stopped by request",
    "guest": "the guest shut itself down",
    "panic": "the guest's kernel panicked",
    "host-reboot": "the host was rebooted",
    "unknown": "the process vanished while the node was away; exit status unknown",
}
VM_FIELDS: Final = {"cpus": "cpus", "memory-mib": "memory-mib", "restart": "restart", "autostart": "autostart"}


class ToldVm(Told):
    """A virtual machine."""

    heard = False
    """Whether the guest of the present run has said that it is ready."""
    again = False
    """Whether it is to come up once it is down."""
    has_disk = False
    own_failure: Data | None = None
    rules_failure: Data | None = None
    """Why its groups and forwards are not applied; shown where it has no failure of its own."""
    ports: ToldPorts

    def take(self, event: StoredEvent) -> None:
        self.view["failure"] = self.own_failure
        super().take(event)
        self.own_failure = self.view["failure"]
        self.view["failure"] = self.own_failure or self.rules_failure or self.ports.failure
        self.view["ports"] = self.ports.seen(self.view["phase"])

    def is_at_rest(self) -> bool:
        return self.view["phase"] in ("stopped", "failed") and self.view["observed"] in ("absent", "exited")

    def come_up(self) -> None:
        self.heard = self.again = False
        self.ports.begin_run()
        self.set(phase="booting", paused_reason=None)
        self.runs_on(None)

    def go_down(self) -> None:
        if self.view["phase"] == "provisioning":
            if self.view["requested"] == "deleted":
                self.set(phase="stopped")
        elif self.is_at_rest():
            self.set(phase="stopped", failure=None)
        else:
            self.set(phase="stopping", paused_reason=None)

    def runs_on(self, accelerator: str | None, user: str | None = None) -> None:
        """On what the process of the present run stands, where there is one: QEMU as another's user isolates nobody."""
        isolation = "kvm" if accelerator == "kvm" and user in (None, "own") else "none"
        self.set(accelerator=accelerator, isolation=isolation if accelerator else None, process_user=user)

    def on_VmRequested(self, data: Data) -> None:  # noqa: N802 - named after the event
        spec = data["spec"]
        self.ports = ToldPorts(spec.get("ports", []))
        self.set(
            id=data["vm-id"],
            name=spec["name"],
            image=spec["image"],
            labels=spec["labels"],
            ready_by=spec["ready-channel"],
            phase="provisioning",
            requested="running",
            observed="absent",
            disk_gib=-(-spec["disk-mib"] // 1024),
            publish=spec.get("publish", []),
            host_loopback=spec.get("host-loopback", False),
            switches=spec.get("switches", []),
            ssh_keys=spec.get("ssh-keys", []),
            first_boot=spec.get("first-boot"),
            user=spec.get("user"),
            cloud_init_sha256=spec.get("cloud-init-sha256"),
            init_script=inits.seen(spec),
            groups=spec.get("groups", []),
            forwards=[],
            rules_revision=0,
            rules_applied=0,
            paused_reason=None,
            restarts=0,
            exit=None,
        )
        self.view.update({seen: spec[kept] for seen, kept in VM_FIELDS.items()})
        self.runs_on(None)

    def on_VmStrayFound(self, data: Data) -> None:  # noqa: N802
        if "phase" not in self.view:
            spec = {
                "name": f"stray-{data['vm-id']}", "image": "", "labels": {}, "ready-channel": "none", "disk-mib": 0,
                "cpus": 0, "memory-mib": 0, "restart": "never", "autostart": False,
            }  # fmt: skip
            self.on_VmRequested({"vm-id": data["vm-id"], "spec": spec})
            self.set(phase="deleted")
        if self.view["phase"] == "deleted":
            self.set(phase="stopped", requested="deleted")

    def on_VmCollected(self, data: Data) -> None:  # noqa: N802
        self.set(phase="deleted")

    def on_DiskProvisioned(self, data: Data) -> None:  # noqa: N802
        self.has_disk = True
        self.set(disk_gib=-(-data["disk-mib"] // 1024))
        if self.view["requested"] == "running":
            self.come_up()
        else:
            self.set(phase="stopped")

    def on_VmBooted(self, data: Data) -> None:  # noqa: N802
        self.ports.booted()
        self.set(phase="ready" if self.heard else "running", observed="running")
        self.runs_on(data["accelerator"], data["process-user"])

    def on_VmReady(self, data: Data) -> None:  # noqa: N802
        self.heard = True
        if self.view["phase"] == "running":
            self.set(phase="ready")

    def on_VmInitEnded(self, data: Data) -> None:  # noqa: N802
        self.set(init_script=inits.seen_ended(self.view["init-script"], data))

    def on_VmPaused(self, data: Data) -> None:  # noqa: N802
        self.set(phase="paused", observed="paused", paused_reason=data["reason"])

    def on_VmResumed(self, data: Data) -> None:  # noqa: N802
        self.set(phase="ready" if self.heard else "running", observed="running", paused_reason=None)

    def on_VmStopRequested(self, data: Data) -> None:  # noqa: N802
        self.again = False
        self.set(requested="stopped")
        self.go_down()

    def on_VmDeleteRequested(self, data: Data) -> None:  # noqa: N802
        self.again = False
        self.set(requested="deleted", failure=None)
        self.go_down()

    def on_VmRestartRequested(self, data: Data) -> None:  # noqa: N802
        self.again = True
        self.set(requested="running", restarts=0)
        self.go_down()

    def on_VmStartRequested(self, data: Data) -> None:  # noqa: N802
        self.set(requested="running", restarts=0, failure=None)
        if self.view["phase"] == "provisioning":
            return  # it comes up once its disk is there
        if self.view["phase"] in (*UP, "stopping"):
            self.again = True
        elif not self.is_at_rest():
            self.again = True
            self.set(phase="stopping")
        elif self.has_disk:
            self.come_up()
        else:
            self.set(phase="provisioning")

    def on_VmEnded(self, data: Data) -> None:  # noqa: N802
        self.set(phase="stopping", observed="paused", paused_reason=None)

    def on_VmExited(self, data: Data) -> None:  # noqa: N802
        self.heard = False
        self.ports.ended()
        shown = ("reason", "exit-code", "signal", "detail")
        self.set(observed="exited", paused_reason=None, exit={name: data[name] for name in shown})
        self.runs_on(None)
        if self.again:
            self.come_up()
        elif self.view["requested"] == "running" and data["reason"] in FAILURES:
            failure = {"phase": "running", "reason": _end_in_words(data), "hint": "", "log-tail": data["log-tail"]}
            self.set(phase="failed", failure=failure)
        else:
            wish = self.view["requested"]
            self.set(phase="stopped", requested="stopped" if wish == "running" else wish)

    def on_VmRestartScheduled(self, data: Data) -> None:  # noqa: N802
        self.set(requested="running", restarts=data["attempt"], failure=None)
        self.come_up()

    def on_VmGaveUp(self, data: Data) -> None:  # noqa: N802
        failure = self.view["failure"]
        self.set(failure={**failure, "reason": f"{failure['reason']}; given up after {data['restarts']} restarts"})

    def change_rules(self, **changed: Any) -> None:
        self.set(rules_revision=self.view["rules-revision"] + 1, **changed)

    def on_GroupsSet(self, data: Data) -> None:  # noqa: N802
        self.change_rules(groups=data["groups"])

    def on_ForwardAdded(self, data: Data) -> None:  # noqa: N802
        self.change_rules(forwards=[*self.view["forwards"], data["forward"]])

    def on_ForwardRemoved(self, data: Data) -> None:  # noqa: N802
        self.change_rules(forwards=[each for each in self.view["forwards"] if each["id"] != data["forward-id"]])

    def on_RulesApplied(self, data: Data) -> None:  # noqa: N802
        self.rules_failure = None
        self.set(rules_applied=data["revision"])

    def on_VmStepFailed(self, data: Data) -> None:  # noqa: N802
        if data["step"] == "applying-rules":
            shown = ("reason", "hint", "log-tail")
            self.rules_failure = {"phase": data["step"], **{name: data[name] for name in shown}}
            return
        if data["step"] == "removing-script":
            return
        if data["step"] in ("plugging", "unplugging"):
            shown = ("reason", "hint", "log-tail")
            self.ports.failure = {"phase": data["step"], **{name: data[name] for name in shown}}
            return
        if data["retry-at"] is None:
            self.again = False
            self.set(phase="failed")
            self.fail(data, data["step"])

    def on_PortAdded(self, data: Data) -> None:  # noqa: N802
        self.ports.add(data["port"], self.view["phase"])

    def on_PortPlugged(self, data: Data) -> None:  # noqa: N802
        self.ports.plug(data["port-id"])

    def on_PortRemoved(self, data: Data) -> None:  # noqa: N802
        self.ports.remove(data["port-id"], failed=data["failed"])

    def on_PortUnplugged(self, data: Data) -> None:  # noqa: N802
        self.ports.drop(data["port-id"])

    def on_VmUndone(self, data: Data) -> None:  # noqa: N802
        self.set(requested="deleted", phase="failed")

    def on_VmDeleted(self, data: Data) -> None:  # noqa: N802
        self.has_disk = False
        self.set(phase="deleted", observed="absent")
        self.runs_on(None)

    def on_VmStopForced(self, data: Data) -> None:  # noqa: N802
        """It is still on its way down."""

    on_VmAdopted = on_VmCleared = on_VmInitScriptRemoved = on_VmStopForced  # noqa: N815


class ToldImage(Told):
    """A base image."""

    def _begin(self, data: Data, phase: str, source: str, ready: str) -> None:
        first_boot = data.get("first-boot") or ("credentials" if source.startswith("recipe:debian") else "none")
        self.set(id=data["image-id"], name=data["name"], phase=phase, source=source, ready=ready, first_boot=first_boot)
        self.set(format=None, size_bytes=None, virtual_size_bytes=None, sha256=None, published=None)
        self.set(catalogued=data.get("catalogued", False), user=data.get("user"), labels=data.get("labels", {}))

    def on_ImageImportRequested(self, data: Data) -> None:  # noqa: N802
        self._begin(data, "importing", data["source"], data["ready-channel"])

    def on_ImageBuildRequested(self, data: Data) -> None:  # noqa: N802
        self._begin(data, "building", f"recipe:{data['recipe']}", "channel" if data["recipe"] == "tiny" else "agent")

    def on_ImageStored(self, data: Data) -> None:  # noqa: N802
        self.view.update(data)
        self.set(phase="ready")

    def on_ImageUpdateRequested(self, data: Data) -> None:  # noqa: N802
        self.set(phase="updating", source=data["source"], failure=None)

    def on_ImageUnchanged(self, data: Data) -> None:  # noqa: N802
        self.set(phase="ready")

    def on_ImageStepFailed(self, data: Data) -> None:  # noqa: N802
        if data["step"] == "updating" and data["retry-at"] is None:
            self.fail(data, data["step"])
            self.set(phase="ready")
        elif data["retry-at"] is None:
            if self.view["failure"] is None:
                self.fail(data, data["step"])
            self.set(phase="failed")

    def on_ImageUndone(self, data: Data) -> None:  # noqa: N802
        self.set(phase="deleting")

    def on_ImageDeleteRequested(self, data: Data) -> None:  # noqa: N802
        self.set(phase="deleting", failure=None)

    def on_ImageDeleted(self, data: Data) -> None:  # noqa: N802
        self.set(phase="deleted")


def _end_in_words(data: Data) -> str:
    if data["reason"] in ENDS:
        what = ENDS[data["reason"]]
    elif data["signal"] is not None:
        what = f"QEMU was ended by signal {data['signal']}"
    elif data["exit-code"] is not None:
        what = f"QEMU exited with status {data['exit-code']}"
    else:
        what = "QEMU vanished; exit status unknown"
    return f"{what} ({data['detail']})" if data["detail"] else what


Views = dict[str, View]


def told(events: Iterable[StoredEvent], node: str) -> tuple[Views, Views, Views, Views]:
    """The views of all VMs, images, networks and groups, by their ids, after these events."""
    kinds: dict[str, tuple[type[Told], dict[str, Told]]] = {
        "vm": (ToldVm, {}), "image": (ToldImage, {}), "network": (ToldNetwork, {}), "group": (ToldGroup, {})
    }  # fmt: skip
    for event in events:
        kind, _, object_id = event.stream.partition("-")
        if kind in kinds:
            made, objects = kinds[kind]
            objects.setdefault(object_id, made(node)).take(event)
    vms, images, networks, groups = ({key: each.view for key, each in objects.items()} for _, objects in kinds.values())
    return vms, images, networks, groups
