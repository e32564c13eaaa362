"""What `why` says of each event, and of how things stand: every sentence that there is, and when it is said."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model import events as vms
from aetherscale.actors.compute.model.commands import BorneGroup, Forward, PortSpec, VmSpec
from aetherscale.actors.compute.model.presentation import VM_KIND
from aetherscale.actors.compute.model.sentences import describe_pause
from aetherscale.actors.compute.model.state import Port, Ports, ProcessIdentity, Rules, Run, Vm
from aetherscale.actors.images.model import events as images
from aetherscale.actors.images.model.decide import Image
from aetherscale.actors.images.model.presentation import IMAGE_KIND
from aetherscale.kernel.attempts import Attempt
from aetherscale.kernel.descriptions import PLAIN
from aetherscale.kernel.errors import Task
from aetherscale.kernel.failures import Failure

LATER = "2027-01-15T08:00:01.000000Z"
LATER_US = 1_800_000_001_000_000
SPEC = VmSpec("web", "1" * 16, "tiny", "raw", 1, "channel", 2, 512, 2048, "on-failure", True, {})
PROCESS = ProcessIdentity(7, 1, "boot", "tcg", "own")
RUN = Run(3, PROCESS)
VM = Vm("2" * 16, SPEC, "running", 0, run=RUN, ever_ran=True)
IMAGE = Image("1" * 16, "tiny", "importing", 0, "/tiny.raw", "channel")


def exited(reason: vms.ExitReason, code: int | None = None, signal: int | None = None, detail: str = "") -> Any:
    return vms.VmExited(3, reason, code, signal, detail, "")


def failed(retry_at: str | None) -> Any:
    return vms.VmStepFailed("booting", 3, 2, "no room", "", "", retry_at)


def booted(user: Any, accelerator: Any = "tcg") -> Any:
    return vms.VmBooted(3, 7, 1, "boot", accelerator, user)


FOLLOWED, HAPPENED = "consequence", "observation"

WEB, SSH = BorneGroup("3" * 16, "web"), BorneGroup("4" * 16, "ssh")
FORWARD = Forward("5" * 16, "tcp", "", 8080, 80)
AT = Forward("6" * 16, "udp", "192.0.2.1", 53, 5353)
BEARING = replace(VM, rules=Rules((WEB,), (FORWARD,), revision=2, applied=2))

LAB = PortSpec("7" * 16, "lab", "web", "aep0123456789ab", "52:54:00:00:00:01", "10.9.8.2", None)
IN_LAB = replace(VM, ports=Ports((Port(LAB),), 1))

VM_EVENTS: list[tuple[Vm | None, Any, str, str]] = [
    (None, vms.VmRequested("2" * 16, SPEC), "request",
     ("asked to create the VM 'web': image 'tiny', 2 CPU(s), 512 MiB of memory, 2 GiB of disk, "
      "restart policy 'on-failure'")),
    (None, vms.VmRequested("2" * 16, replace(SPEC, init_sha256="5" * 64)), "request",
     ("asked to create the VM 'web': image 'tiny', 2 CPU(s), 512 MiB of memory, 2 GiB of disk, "
      "restart policy 'on-failure', an init script of SHA-256 555555555555…")),
    (None, vms.VmRequested("2" * 16, replace(SPEC, user="joe")), "request",
     ("asked to create the VM 'web': image 'tiny', 2 CPU(s), 512 MiB of memory, 2 GiB of disk, "
      "restart policy 'on-failure', the user 'joe'")),
    (VM, vms.VmInitEnded(3, "ended", 0, "done"), FOLLOWED, "its init script ended with exit status 0"),
    (VM, vms.VmInitEnded(3, "ended", 2, "done"), FOLLOWED, "its init script failed with exit status 2"),
    (VM, vms.VmInitScriptRemoved(), FOLLOWED, "its init script was removed from the host"),
    (None, vms.VmRequested("2" * 16, replace(SPEC, groups=[WEB, SSH])), "request",
     ("asked to create the VM 'web': image 'tiny', 2 CPU(s), 512 MiB of memory, 2 GiB of disk, "
      "restart policy 'on-failure', groups 'web', 'ssh'")),
    (BEARING, vms.GroupsSet([WEB, SSH]), "request", "asked to let it bear the group 'ssh'"),
    (BEARING, vms.GroupsSet([]), "request", "asked to let it bear the group 'web' no more"),
    (BEARING, vms.GroupsSet([SSH], keep_established=True), "request",
     ("asked to let it bear the group 'ssh' and to let it bear the group 'web' no more, "
      "and to keep the flows that are no longer allowed")),
    (BEARING, vms.GroupsSet([WEB]), "request", "asked to leave its groups as they are"),
    (VM, vms.ForwardAdded(FORWARD), "request", "asked to let the port 8080/tcp of the host lead to its port 80"),
    (VM, vms.ForwardAdded(AT), "request",
     "asked to let the port 53/udp of the host at 192.0.2.1 lead to its port 5353"),
    (BEARING, vms.ForwardRemoved("5" * 16), "request", "asked to let the port 8080/tcp of the host lead to it no more"),
    (VM, vms.ForwardRemoved("5" * 16, keep_established=True), "request",
     "asked to let a port of the host lead to it no more, and to keep the flows that it has led"),
    (VM, vms.ForwardRemoved("5" * 16), "request", "asked to let a port of the host lead to it no more"),
    (BEARING, vms.RulesApplied(2), FOLLOWED, "its groups and forwards were applied"),
    (BEARING, vms.VmStepFailed("applying-rules", 3, 2, "no room", "", "", LATER), FOLLOWED,
     f"applying its groups and forwards failed, attempt 2, to be tried again at {LATER}: no room"),
    (VM, vms.PortAdded(LAB), "request", "asked to attach it to the network 'lab' as 10.9.8.2"),
    (IN_LAB, vms.PortPlugged(LAB.tap, 3), FOLLOWED, "its guest was given the card for the network 'lab'"),
    (IN_LAB, vms.PortRemoved(LAB.tap), "request", "asked to detach it from the network 'lab'"),
    (IN_LAB, vms.PortRemoved(LAB.tap, failed=True), FOLLOWED, "the port in the network 'lab' was to be removed again"),
    (IN_LAB, vms.PortUnplugged(LAB.tap, card_left=False), FOLLOWED, "it was detached from the network 'lab'"),
    (IN_LAB, vms.PortUnplugged(LAB.tap, card_left=True), FOLLOWED,
     ("it was detached from the network 'lab'; its guest had not let go of the card, which has no cable now, "
      "and whose slot a restart frees")),
    (IN_LAB, vms.VmStepFailed("plugging", 3, 3, "no room", "", "", None), FOLLOWED,
     "plugging a port in failed, attempt 3, not to be tried again: no room"),
    (IN_LAB, vms.VmStepFailed("unplugging", 3, 2, "no room", "", "", LATER), FOLLOWED,
     f"removing a port failed, attempt 2, to be tried again at {LATER}: no room"),
    (VM, vms.DiskProvisioned(2048), FOLLOWED, "its disk was created: 2 GiB, based on the image 'tiny'"),
    (VM, vms.DiskProvisioned(2049), FOLLOWED, "its disk was created: 2049 MiB, based on the image 'tiny'"),
    (VM, vms.VmStartRequested(), "request", "asked to start it"),
    (replace(VM, phase="ending"), vms.VmStartRequested(), "request",
     "asked to start it, after the stop that was under way"),
    (VM, booted("own"), FOLLOWED, "QEMU was started: run 3, process 7, TCG"),
    (VM, booted(None, "kvm"), FOLLOWED, "QEMU was started: run 3, process 7, KVM"),
    (VM, booted("node"), FOLLOWED, "QEMU was started: run 3, process 7 as the node's own user, TCG"),
    (VM, booted("root"), FOLLOWED, "QEMU was started: run 3, process 7 as root, TCG"),
    (VM, vms.VmReady(3, "agent"), FOLLOWED, "the guest reported that it was ready, through its agent"),
    (VM, vms.VmReady(3, "channel"), FOLLOWED, "the guest reported that it was ready, over its ready channel"),
    (VM, vms.VmReady(3, "none"), FOLLOWED, "the guest reported that it was ready"),
    (VM, vms.VmPaused(3, "disk", ""), HAPPENED, "QEMU paused it in run 3: there was no room left on the host's disk"),
    (VM, vms.VmPaused(3, "io-error", "EIO"), HAPPENED, "QEMU paused it in run 3: its disk gave an I/O error (EIO)"),
    (VM, vms.VmResumed(3), FOLLOWED, "it was resumed"),
    (VM, vms.VmStopRequested(False, 30.0), "request", "asked to stop it, giving the guest 30 s to shut down"),
    (VM, vms.VmStopRequested(True, 30.0), "request", "asked to stop it at once, without asking the guest"),
    (VM, vms.VmRestartRequested(2.5), "request", "asked to restart it, giving the guest 2.5 s to shut down"),
    (VM, vms.VmStopForced(3, 30.0), FOLLOWED, "the guest did not shut down within 30 s, so it was ended"),
    (VM, vms.VmEnded(3, "panic", ""), HAPPENED, "the guest's kernel panicked in run 3"),
    (replace(VM, run=replace(RUN, asked_down=True)), vms.VmEnded(3, "panic", "oops"), HAPPENED,
     "the guest's kernel panicked in run 3 (oops)"),
    (VM, vms.VmEnded(3, "shutdown", ""), HAPPENED, "the guest shut itself down in run 3"),
    (replace(VM, run=replace(RUN, asked_down=True)), vms.VmEnded(3, "shutdown", ""), FOLLOWED, "the guest shut down"),
    (VM, exited("user"), FOLLOWED, "its process ended"),
    (replace(VM, run=Run(3)), exited("user"), FOLLOWED, "it was stopped before it ran again"),
    (replace(VM, run=Run(3), ever_ran=False), exited("user"), FOLLOWED, "it was stopped before it ran"),
    (replace(VM, run=replace(RUN, ended=vms.VmEnded(3, "shutdown", ""))), exited("guest"), FOLLOWED,
     "QEMU, which had kept it paused, ended"),
    (VM, exited("host-reboot"), HAPPENED, "run 3 ended: the host was rebooted"),
    (VM, exited("unknown"), HAPPENED, "run 3 ended: the process vanished while the node was away; exit status unknown"),
    (VM, exited("crash", signal=9), HAPPENED, "run 3 ended: QEMU was ended by signal 9"),
    (VM, exited("crash", 0, detail="oops"), HAPPENED, "run 3 ended: QEMU exited with status 0 (oops)"),
    (VM, exited("crash"), HAPPENED, "run 3 ended: QEMU vanished; exit status unknown"),
    (VM, exited("crash", detail="the process was not this node's child"), HAPPENED,
     "run 3 ended: QEMU vanished; exit status unknown (the process was not this node's child)"),
    (VM, exited("crash", detail="exit status unknown: the process was not this node's child"), HAPPENED,
     "run 3 ended: QEMU vanished; exit status unknown (the process was not this node's child)"),
    (replace(VM, spec=replace(SPEC, restart="never")), exited("crash", 1), HAPPENED,
     "run 3 ended: QEMU exited with status 1; restart policy 'never' does not start it again"),
    (replace(VM, spec=replace(SPEC, restart="never")), exited("host-reboot"), HAPPENED,
     "run 3 ended: the host was rebooted"),
    (VM, vms.VmRestartScheduled(0, LATER), FOLLOWED,
     "the host had been rebooted, and autostart is on, so it was to be started again"),
    (VM, vms.VmRestartScheduled(1, LATER), FOLLOWED, f"restart policy 'on-failure': restart 1, not before {LATER}"),
    (VM, vms.VmGaveUp(5), FOLLOWED, "restart policy 'on-failure' gave up after 5 restarts"),
    (VM, vms.VmAdopted(3), HAPPENED, "the node was started again and found run 3 still running"),
    (VM, failed(LATER), FOLLOWED, f"booting it failed, attempt 2, to be tried again at {LATER}: no room"),
    (VM, failed(None), FOLLOWED, "booting it failed, attempt 2, not to be tried again: no room"),
    (VM, vms.VmCleared(3), FOLLOWED, "none of its processes was left"),
    (None, vms.VmStrayFound("2" * 16, True, False, "k"), HAPPENED,
     "the host had a process of it, although the log did not know it"),
    (replace(VM, phase="deleted"), vms.VmStrayFound("2" * 16, True, True, "k"), HAPPENED,
     "the host had a process and a directory of it, although it was deleted"),
    (VM, vms.VmStrayFound("2" * 16, False, True, "k"), HAPPENED,
     "the host had a process of it, although it was not meant to run"),
    (VM, vms.VmCollected(""), FOLLOWED, "it was quarantined"),
    (VM, vms.VmCollected("/k"), FOLLOWED, "it was quarantined; its directory is kept in /k"),
    (VM, vms.VmUndone(), FOLLOWED, "it had never run, so what had been created of it was to be removed"),
    (VM, vms.VmDeleteRequested(True, 1.0), "request", "asked to delete it at once, without asking the guest"),
    (VM, vms.VmDeleteRequested(False, 1.0), "request", "asked to delete it, giving the guest 1 s to shut down"),
    (VM, vms.VmDeleted(), FOLLOWED, "it was removed from the host, and its name was free again"),
]  # fmt: skip

DOWN = replace(VM, phase="stopped", requested="stopped")
FAILURE = Failure("booting", "no room")
VM_STANDS: list[tuple[Vm, str]] = [
    (IN_LAB, "it runs, and its guest has not reported yet that it is ready; it is being attached to the network 'lab'"),
    (replace(IN_LAB, ports=Ports((Port(LAB, is_leaving=True),), 1)),
     "it runs, and its guest has not reported yet that it is ready; it is being detached from the network 'lab'"),
    (replace(IN_LAB, ports=Ports((Port(LAB),), 1, failure=Failure("plugging", "no", "", ""))),
     ("it runs, and its guest has not reported yet that it is ready; "
      "it is being attached to the network 'lab', which is tried again: no")),
    (replace(IN_LAB, phase="stopped"), "it was stopped before it ran"),
    (replace(IN_LAB, run=replace(RUN, cards=(LAB.tap,))),
     "it runs, and its guest has not reported yet that it is ready"),
    (replace(VM, phase="provisioning"), "its disk is being created"),
    (replace(VM, phase="provisioning", attempt=Attempt(2)), "its disk is being created, attempt 2"),
    (replace(VM, phase="booting", attempt=Attempt(2, LATER_US)),
     f"QEMU is being started for run 3, attempt 2, not before {LATER}"),
    (VM, "it runs, and its guest has not reported yet that it is ready"),
    (replace(VM, spec=replace(SPEC, ready_channel="none")), "it runs; its image cannot report that it is ready"),
    (replace(VM, phase="ready"), "its guest has reported that it is ready"),
    (replace(VM, phase="paused", run=replace(RUN, paused_reason="disk")),
     "QEMU has paused it: there was no room left on the host's disk"),
    (replace(VM, phase="paused"), "QEMU has paused it: another program paused it through QMP"),
    (replace(VM, phase="shutting-down", grace_s=2.5), "its guest has 2.5 s to shut down"),
    (replace(VM, phase="ending"), "it is being ended"),
    (replace(VM, phase="ending", run=replace(RUN, start_next=True)), "it is being ended; after that it starts again"),
    (replace(VM, phase="shutting-down", run=replace(RUN, start_next=True)),
     "its guest has 30 s to shut down; after that it starts again"),
    (replace(DOWN, phase="quarantining", attempt=Attempt(3)), "what was found of it is being quarantined, attempt 3"),
    (replace(DOWN, phase="removing"), "it is being removed from the host"),
    (BEARING, "it runs, and its guest has not reported yet that it is ready"),
    (replace(BEARING, rules=replace(BEARING.rules, revision=3)),
     "it runs, and its guest has not reported yet that it is ready; its groups and forwards are being applied"),
    (replace(BEARING, phase="ready", rules=replace(BEARING.rules, revision=3, failure=FAILURE)),
     ("its guest has reported that it is ready; its groups and forwards could not be applied, and are tried again: "
      "no room")),
    (replace(BEARING, phase="ending", requested="deleted", rules=replace(BEARING.rules, revision=3)),
     "it is being ended"),
    (DOWN, "it was stopped before it ran"),
    (replace(DOWN, exit=exited("user")), "stopped by request"),
    (replace(DOWN, exit=exited("host-reboot")), "the host was rebooted"),
    (replace(DOWN, exit=exited("guest")),
     "the guest shut itself down; restart policy 'on-failure' does not start it again"),
    (replace(DOWN, exit=exited("panic")),
     "the guest's kernel panicked; restart policy 'on-failure' does not start it again"),
    (replace(VM, phase="failed", failure=FAILURE), "booting: no room"),
    (replace(VM, phase="failing", failure=FAILURE), "booting: no room"),
    (replace(VM, phase="rolling-back", failure=FAILURE), "booting: no room"),
    (replace(VM, phase="deleted"), "nothing of it is left on the host"),
    (replace(VM, phase="deleted", rolled_back=True), "nothing of it is left on the host"),
    (replace(VM, phase="deleted", failure=FAILURE), "nothing of it is left on the host"),
    (replace(VM, phase="deleted", rolled_back=True, failure=FAILURE), "it never ran: booting: no room"),
    (replace(VM, phase="deleted", quarantined_as="/k"),
     "what was found of it, and should not have been there, is kept in /k"),
]  # fmt: skip

SHA = "0123456789abcdef" * 4
IMAGE_EVENTS: list[tuple[Image | None, Any, str, str]] = [
    (None, images.ImageImportRequested("1" * 16, "tiny", "/t.raw", None, "none"), "request",
     "asked to import the image 'tiny' from /t.raw, without a checksum"),
    (None, images.ImageImportRequested("1" * 16, "tiny", "/t.raw", SHA, "none"), "request",
     "asked to import the image 'tiny' from /t.raw, SHA-256 0123456789ab…"),
    (None, images.ImageBuildRequested("1" * 16, "t", "tiny"), "request",
     "asked to build the image 't' from the recipe 'tiny'"),
    (IMAGE, images.ImageStored("qcow2", SHA, 1024**3 - 1024**2, 1), FOLLOWED,
     "it passed every check and was stored: qcow2, 1023.0 MiB, SHA-256 0123456789ab…"),
    (IMAGE, images.ImageStored("raw", SHA, 1024**3, 1), FOLLOWED,
     "it passed every check and was stored: raw, 1.0 GiB, SHA-256 0123456789ab…"),
    (IMAGE, images.ImageStored("raw", SHA, 59 * 1024**3 // 2, 1), FOLLOWED,
     "it passed every check and was stored: raw, 29.5 GiB, SHA-256 0123456789ab…"),
    (IMAGE, images.ImageStepFailed("importing", 1, "gone", "", "", LATER), FOLLOWED,
     f"importing failed, attempt 1, to be tried again at {LATER}: gone"),
    (IMAGE, images.ImageStepFailed("importing", 3, "gone", "", "", None), FOLLOWED,
     "importing failed, attempt 3, not to be tried again: gone"),
    (IMAGE, images.ImageUndone(), FOLLOWED,
     "it had never been complete, so what had been stored of it was to be removed"),
    (IMAGE, images.ImageUpdateRequested("https://h/i", "https://h/S", None), "request",
     "asked for the newest file of it, from https://h/i, with the checksum published at https://h/S"),
    (IMAGE, images.ImageUpdateRequested("https://h/i", None, "0f" * 32), "request",
     "asked for the newest file of it, from https://h/i, SHA-256 0f0f0f0f0f0f…"),
    (IMAGE, images.ImageUnchanged(), FOLLOWED, "what is published is what was here already"),
    (IMAGE, images.ImageDeleteRequested(), "request", "asked to delete it"),
    (IMAGE, images.ImageDeleted(), FOLLOWED, "it was removed from the host, and its name was free again"),
]  # fmt: skip

GONE = Failure("importing", "gone", "", "")
IMAGE_STANDS: list[tuple[Image, str]] = [
    (IMAGE, "it is being imported from /tiny.raw"),
    (replace(IMAGE, attempt=Attempt(blocked=True), failure=GONE), "importing: gone"),
    (replace(IMAGE, phase="building", recipe="tiny"), "it is being built from the recipe 'tiny'"),
    (replace(IMAGE, phase="ready"), "VMs can be created from it"),
    (replace(IMAGE, phase="ready", failure=GONE), "VMs can be created from it, but it could not be updated: gone"),
    (replace(IMAGE, phase="updating"), "VMs can be created from it, and a newer one is fetched from /tiny.raw"),
    (replace(IMAGE, phase="deleting"), "it is being removed from the host"),
    (replace(IMAGE, phase="failed"), "it failed"),
    (replace(IMAGE, phase="deleted"), "nothing of it is left on the host"),
    (replace(IMAGE, phase="deleted", rolled_back=True), "nothing of it is left on the host"),
    (replace(IMAGE, phase="deleted", failure=GONE), "nothing of it is left on the host"),
    (replace(IMAGE, phase="deleted", rolled_back=True, failure=GONE), "it was never complete: importing: gone"),
]


@pytest.mark.parametrize(("before", "event", "role", "text"), VM_EVENTS)
def test_what_happened_to_a_vm(before: Vm | None, event: Any, role: str, text: str) -> None:
    told = VM_KIND.descriptions.describe(before, event)
    assert (told.role, told.text) == (role, text)


@pytest.mark.parametrize(("before", "event", "role", "text"), IMAGE_EVENTS)
def test_what_happened_to_an_image(before: Image | None, event: Any, role: str, text: str) -> None:
    told = IMAGE_KIND.descriptions.describe(before, event)
    assert (told.role, told.text) == (role, text)


@pytest.mark.parametrize(("vm", "text"), VM_STANDS)
def test_how_a_vm_stands(vm: Vm, text: str) -> None:
    assert VM_KIND.descriptions.summarize(vm) == text


@pytest.mark.parametrize(("image", "text"), IMAGE_STANDS)
def test_how_an_image_stands(image: Image, text: str) -> None:
    assert IMAGE_KIND.descriptions.summarize(image) == text


def test_no_event_and_no_phase_is_left_out() -> None:
    assert {type(event) for _, event, _, _ in VM_EVENTS} == set(get_args(vms.VmEvent))
    assert {type(event) for _, event, _, _ in IMAGE_EVENTS} == set(get_args(images.ImageEvent))


def test_a_paused_vm_is_told_with_the_way_on() -> None:
    paused = replace(VM, phase="paused")
    assert describe_pause(replace(paused, run=replace(RUN, paused_reason="disk"))) == (
        "the VM 'web' is paused: there was no room left on the host's disk",
        ("make room on the host (df -h); it then resumes by itself",),
    )
    assert describe_pause(paused) == describe_pause(replace(paused, run=replace(RUN, paused_reason="user")))
    _, repair = describe_pause(replace(paused, run=replace(RUN, paused_reason="io-error")))
    again = (Task("vm", "stop", "web", {"kill": True}), "; ", Task("vm", "start", "web"))
    assert repair == ("repair the host's disk (dmesg), then: ", *again)
    assert describe_pause(replace(paused, run=replace(RUN, paused_reason="internal-error")))[1] == again


def test_a_kind_without_sentences_is_told_by_the_documentation_of_its_events() -> None:
    told = PLAIN.describe(None, vms.VmDeleted())
    assert (told.role, told.text) == (FOLLOWED, "Nothing of the VM is left on the host")
    assert PLAIN.summarize(None) == ""
