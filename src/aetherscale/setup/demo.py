"""The demo: a node, an image, virtual machines in a network, the firewall, the log, and proof that nothing is left.

Where the host allows no network, it says so, and shows one virtual machine without one. Where it forwards no packets,
its network is isolated, and no port of the host leads into it.

Everything is done by the programs that a user has: the node is a child process, and each step is a command line that is
shown before it runs. What comes out is checked; the first deviation ends the demo with status 1.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from aetherscale.kernel.fault import Fault
from aetherscale.setup import demofirewall, demonetwork
from aetherscale.setup.democommands import Commands, Deviation, heading, shown, typed
from aetherscale.setup.demoprocesses import kill_all_in, processes_in

KEPT: Final = ("AETHERSCALE_CACHE_DIR", "AETHERSCALE_ACCELERATOR")
"""Settings of the caller that hold in the demo too."""
READY_S: Final = 60.0
END_S: Final = 60.0
NAMES_S: Final = 60.0
"""How long a guest that is ready may take to have its addresses and to know whom to ask of names."""
PAUSE_S: Final = 0.5
VM: Final = "web"
OTHER_VM: Final = "db"
NETWORK: Final = "lab"
ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def demo() -> int:
    """Run the demo; answers with the exit status."""
    with tempfile.TemporaryDirectory(prefix="aetherscale-demo-") as directory:
        show = _Show(Path(directory))
        try:
            with ExitStack() as stack:
                stack.callback(show.end)
                stack.callback(_be_undisturbed)
                show.play()
        except Deviation as deviation:
            print(f"\nthe demo failed: {deviation}", file=sys.stderr)
            show.tell_of_the_node()
            return 1
        except (KeyboardInterrupt, SystemExit) as ended:
            print("\ninterrupted; everything has been taken away again", file=sys.stderr)
            return ended.code if isinstance(ended, SystemExit) and isinstance(ended.code, int) else 130
    if Path(directory).exists():
        print(f"\nthe demo failed: {directory} is still there", file=sys.stderr)
        return 1
    print("\nNothing is left: no process, no file, no socket.")
    return 0


class _Show:
    """One run of the demo."""

    def __init__(self, directory: Path) -> None:
        self.state_dir = directory / "state"
        self._name = f"demo-{os.getpid()}"
        """The name of the node, which is in all that it makes on the host: no other node's is taken for it."""
        self._has_network = self._is_led_out = self._may_have_left_a_network = False
        self._node: subprocess.Popen[str] | None = None
        self._tail: subprocess.Popen[str] | None = None
        self._node_said = directory / "node.log"
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("AETHERSCALE_")}
        self._environ |= {name: os.environ[name] for name in KEPT if name in os.environ}
        self._environ["AETHERSCALE_STATE_DIR"] = str(self.state_dir)
        self._environ["AETHERSCALE_ALLOW_UNISOLATED"] = "1"
        self._environ["PYTHONUNBUFFERED"] = "1"
        self._aetherscale = Commands(self._environ)

    def play(self) -> None:
        """The steps, one after the other. Raises `Deviation`."""
        heading(
            "A node",
            "It brings its own nats-server and keeps everything it knows in one event log.\n"
            "Its guest is one that we make, so --allow-unisolated is set: QEMU may run as the user who starts this.",
        )
        self._start_node()
        heading("An image", "A small Linux, made from Debian's packages; downloaded, unpacked, nothing installed.")
        self._aetherscale.run("image", "build", "tiny")
        self._make_network()
        self._make_vms()
        self._aetherscale.run("vm", "list")
        self._expect_phase("ready")
        self._aetherscale.run("vm", "exec", VM, "--", "uname", "-a")
        if self._has_network:
            self._reach_by_name()
            demofirewall.show(self._aetherscale, VM, OTHER_VM, NETWORK, is_led_out=self._is_led_out)
        heading("The log is the debugger", "The same state, computed from the log alone, and why the VM is in it.")
        self._aetherscale.run("replay")
        self._compare_replay_with_list()
        self._aetherscale.run("why", "vm", VM)
        heading("A graceful stop", "The guest is asked to shut down, as by its power button, and does so.")
        self._aetherscale.run("vm", "stop", VM, "--timeout", "5m")
        self._expect_phase("stopped")
        self._expect_no_force()
        self._aetherscale.run("diff", str(self._seq_of("VmStopRequested") - 1))
        heading("The end", "A deleted VM is gone from the host. Its events stay.")
        self._aetherscale.run("vm", "delete", VM, *((OTHER_VM,) if self._has_network else ()))
        if self._has_network:
            self._aetherscale.run("firewall", "group", "delete", demofirewall.GROUP)
            self._aetherscale.run("network", "delete", NETWORK)
            self._expect_nothing_of_the_network()
        self._aetherscale.run("image", "delete", "tiny")
        self._expect_nothing_of_the_vm()
        self._stop_node()
        heading("Afterwards", "No node runs any more; the log still has everything.")
        self._aetherscale.run("why", "vm", VM)
        self._aetherscale.run("log", "verify")
        self._expect_no_process()

    # --- the network and the virtual machines --------------------------------------------------------------------

    def _make_network(self) -> None:
        lacking = demonetwork.lacking(self._name, self.state_dir)
        if lacking is not None:
            heading("No network, and no firewall", f"{lacking.reason}; for both: {lacking.remedy}")
            return
        staying = demonetwork.staying()
        if staying is None:
            words: tuple[str, ...] = ("network", "create", NETWORK, "--kind", "nat")
            about = "Its virtual machines reach each other, by name, and the world through the host."
        else:
            words = ("network", "create", NETWORK)
            about = f"Its virtual machines reach each other, by name, and nothing else.\n{staying}"
        heading("A network", about)
        self._may_have_left_a_network = True
        typed(shown(*words))
        self._has_network = self._aetherscale.done(*words).returncode == 0
        self._is_led_out = staying is None
        if not self._has_network:
            print("\nThe demo goes on without a network.", flush=True)

    def _make_vms(self) -> None:
        words = ["--image", "tiny", "--memory", "256M"]
        if self._has_network:
            words += ["--network", NETWORK]
            heading("Two virtual machines", "They have their addresses before they boot, and for ever.")
            self._aetherscale.run("vm", "create", OTHER_VM, *words, "--no-wait")
        else:
            heading("A virtual machine", "The command returns when the guest reports that it is ready.")
        with self._events_as_they_come(ready=2 if self._has_network else 1):
            self._aetherscale.run("vm", "create", VM, *words, "--timeout", "5m")
            if self._has_network:
                self._aetherscale.run("vm", "wait", OTHER_VM, "--timeout", "5m")

    def _reach_by_name(self) -> None:
        heading("By name", "One guest pings the other by the name of its VM, which the network's resolver knows.")
        words = ("vm", "exec", OTHER_VM, "--", "ping", "-c", "1", VM)
        until_s = time.monotonic() + NAMES_S
        while self._aetherscale.done(*words, capture=True).returncode != 0 and time.monotonic() < until_s:
            time.sleep(PAUSE_S)
        self._aetherscale.run(*words)

    # --- the node ------------------------------------------------------------------------------------------------

    def _start_node(self) -> None:
        typed("aetherscale serve")
        with self._node_said.open("w") as log:
            self._node = subprocess.Popen(
                self._aetherscale.line("serve", "--state-dir", str(self.state_dir), "--node", self._name),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environ,
                start_new_session=True,
            )
        ready = threading.Event()
        threading.Thread(target=_relay_until_end, args=(self._node, ready), daemon=True).start()
        if not ready.wait(READY_S) or self._node.poll() is not None:
            raise Deviation("the node did not become ready")

    def _stop_node(self) -> None:
        assert self._node is not None
        self._node.send_signal(signal.SIGTERM)
        try:
            status = self._node.wait(END_S)
        except subprocess.TimeoutExpired:
            raise Deviation(f"the node did not end within {END_S:.0f} s") from None
        if status != 0:
            raise Deviation(f"the node ended with status {status}")

    def tell_of_the_node(self) -> None:
        """The last lines that the node wrote to stderr."""
        with suppress(FileNotFoundError):
            for line in self._node_said.read_text(errors="replace").splitlines()[-20:]:
                print(f"  node | {line}", file=sys.stderr)

    def end(self) -> None:
        """Whatever still runs is ended, in the order: who watches, the node, its guests; and its network goes."""
        for process in (self._tail, self._node):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(END_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        kill_all_in(self.state_dir)
        if self._may_have_left_a_network:
            try:
                demonetwork.remove(self._name, self.state_dir)
            except (Fault, OSError) as failure:
                raise Deviation(f"the network could not be taken away: {failure}") from failure

    # --- commands ------------------------------------------------------------------------------------------------

    @contextmanager
    def _events_as_they_come(self, *, ready: int) -> Iterator[None]:
        """Show events until so many guests have been ready. Raises `Deviation`."""
        typed("aetherscale events tail &")
        head = len(self._aetherscale.asked("events", "list"))
        words = ("events", "tail", "--after", str(head))
        self._tail = subprocess.Popen(
            self._aetherscale.line(*words),
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        seen = threading.Event()
        reader = threading.Thread(target=_relay_events, args=(self._tail, seen, ready), daemon=True)
        reader.start()
        yield
        if not seen.wait(END_S):
            raise Deviation("`aetherscale events tail` did not show that a guest was ready")
        self._tail.terminate()
        self._tail.wait(END_S)
        reader.join(END_S)

    # --- what has to hold ----------------------------------------------------------------------------------------

    def _expect_phase(self, phase: str) -> None:
        found = self._aetherscale.asked("vm", "show", VM)["phase"]
        if found != phase:
            raise Deviation(f"the VM is {found}, not {phase}")

    def _compare_replay_with_list(self) -> None:
        if self._aetherscale.asked("replay", "vm") != self._aetherscale.asked("vm", "list"):
            raise Deviation("`replay vm` and `vm list` differ")
        print("  `replay vm --json` and `vm list --json` are equal.")

    def _expect_no_force(self) -> None:
        if any(event["type"] == "VmStopForced" for event in self._aetherscale.asked("events", "list")):
            raise Deviation("the guest did not shut down by itself")

    def _seq_of(self, event_type: str) -> int:
        return int(self._aetherscale.asked("events", "list", "--type", event_type)[-1]["seq"])

    def _expect_nothing_of_the_vm(self) -> None:
        if self._aetherscale.asked("vm", "list"):
            raise Deviation("`vm list` still has the VM")
        vms = self.state_dir / "vms"
        left = sorted(str(path) for path in vms.rglob("*")) if vms.exists() else []
        images = sorted(str(path) for path in (self.state_dir / "images").glob("*") if path.is_file())
        if left or images:
            raise Deviation(f"files are left: {', '.join((*left, *images))}")
        guests = [pid for pid, cwd in processes_in(self.state_dir).items() if "vms" in cwd.parts]
        if guests:
            raise Deviation(f"processes are left: {guests}")
        print("  No process, no file and no socket of the VM is left.")

    def _expect_nothing_of_the_network(self) -> None:
        if left := demonetwork.left():
            raise Deviation(f"of the network is left: {', '.join(left)}")
        print("  No bridge, no tap, no rule and no resolver of the network is left.")

    def _expect_no_process(self) -> None:
        left = processes_in(self.state_dir)
        if left:
            raise Deviation(f"processes are left: {left}")


def _be_undisturbed() -> None:
    """From here on the demo takes everything away, which a second Ctrl-C does not cut short."""
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def _relay_until_end(node: subprocess.Popen[str], ready: threading.Event) -> None:
    """Show what the node says on stdout; it is ready with the line that says so, or at its end."""
    for line in _lines(node.stdout):
        print(f"  {line}", flush=True)
        if line.startswith("ready"):
            ready.set()
    ready.set()


def _relay_events(tail: subprocess.Popen[str], seen: threading.Event, ready: int) -> None:
    for line in _lines(tail.stdout):
        print(f"  event | {line}", flush=True)
        ready -= "VmReady" in line
        if ready == 0:
            seen.set()


def _lines(stream: IO[str] | None) -> Iterator[str]:
    assert stream is not None
    for line in stream:
        yield line.rstrip("\n")
