"""libvirt beside us, as a process that measures itself: `python3 -m benchmarks.libvirt_peer DIRECTORY IMAGE`.

It needs nothing but the standard library and the binding of libvirt, so that Debian's Python, for which the binding is
packaged, can run it. It starts a `libvirtd` of its own in the directory, with its own sockets, answers `ready`, and
then each line of JSON (`{"do": NAME, …}`) with one of figures. A line `error …` says why not.

libvirt leaves its guests to PID 1, and waits at `destroy` until the process has been reaped. Some PID 1s take a second
for that, which would be measured as libvirt's; so this process reaps them.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

Samples = dict[str, list[float]]

PR_SET_CHILD_SUBREAPER = 36
START_LIMIT_S = 90
"""A libvirtd that finds a /dev/kvm which it may not open can spend a minute on it."""
EVENT_LIMIT_S = 20
NOBODY = 65534
EMULATOR = "/usr/bin/qemu-system-x86_64"


def domain(name: str, image: str, memory_mib: int) -> str:
    """The XML of a guest such as ours: q35 under TCG, one virtio disk, nothing else."""
    return f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>{memory_mib}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>{EMULATOR}</emulator><controller type='usb' model='none'/><memballoon model='none'/>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{image}'/>
<target dev='vda' bus='virtio'/><readonly/><shareable/></disk></devices></domain>"""


class Peer:
    """A libvirtd, and what can be measured of it. Each method answers with values for figures."""

    def __init__(self, directory: Path, image: str) -> None:
        self._directory = directory
        self._image = image
        self._libvirt: Any = importlib.import_module("libvirt")
        self._daemon: subprocess.Popen[bytes] | None = None
        self._socket = directory / "run" / "libvirt" / "libvirt-sock"
        self._made = 0
        self._defined = 0
        self._deaths: SimpleQueue[tuple[str, float]] = SimpleQueue()
        self._own: Any = None

    def start(self) -> None:
        """Start the daemon and make the first guest, with which libvirt learns what QEMU can do."""
        configured = self._directory / "config" / "libvirt"
        configured.mkdir(parents=True)
        # QEMU's messages go to a file, not to a virtlogd that would be started for them and stay.
        (configured / "qemu.conf").write_text('stdio_handler = "file"\n')
        (self._directory / "libvirtd.conf").write_text(f'log_outputs="3:file:{self._directory}/log"\n')
        places = {"RUNTIME_DIR": "run", "CONFIG_HOME": "config", "CACHE_HOME": "cache", "DATA_HOME": "data"}
        environment = {f"XDG_{name}": str(self._directory / place) for name, place in places.items()}
        for place in places.values():
            (self._directory / place).mkdir(exist_ok=True)
        self._daemon = subprocess.Popen(
            ["libvirtd", "-f", str(self._directory / "libvirtd.conf"), "-p", str(self._directory / "pid")],
            env={"PATH": f"{os.environ['PATH']}:/usr/sbin", "HOME": str(self._directory), **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._libvirt.registerErrorHandler(lambda context, error: None, None)
        self._libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=self._events, daemon=True).start()
        end = time.monotonic() + START_LIMIT_S
        while self._own is None:
            try:
                self._own = self.connect()
            except self._libvirt.libvirtError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        self._own.domainEventRegisterAny(
            None, self._libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lambda *what: self._happened(what[1], what[2]), None
        )
        self.create(1)

    def close(self) -> None:
        """End every guest and the daemon."""
        if self._own is not None:
            for each in self._own.listAllDomains(self._libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                each.destroy()
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(EVENT_LIMIT_S)

    def connect(self) -> Any:
        """A client of its own."""
        return self._libvirt.open(f"qemu+unix:///session?socket={self._socket}")

    def create(self, times: int) -> Samples:
        """From the XML to running, and from the wish to end it to the end; one after the other."""
        up, down = [], []
        for _ in range(times):
            begun = time.perf_counter()
            made = self._own.createXML(self._next())
            up.append(_ms(begun))
            begun = time.perf_counter()
            made.destroy()
            down.append(_ms(begun))
        return {"create ms": up, "kill ms": down}

    def creates(self, alone: int, clients: int, each: int) -> Samples:
        """Guests per second that one client starts, and that so many start at once; they are ended afterwards."""
        return {
            "1 client creates/s": [self._create_together(1, alone)],
            f"{clients} clients creates/s": [self._create_together(clients, each)],
        }

    def accept(self, times: int, clients: int) -> Samples:
        """Definitions that are on disk when the call returns: one after the other, then by several clients."""
        took = []
        for _ in range(times):
            text = self._next()
            begun = time.perf_counter()
            self._own.defineXML(text)
            took.append(_ms(begun))

        def work() -> None:
            own = self.connect()
            for _ in range(times // clients):
                own.defineXML(self._next())

        rate = together(clients, times // clients * clients, work)
        self._undefine(self._own.listAllDomains())
        return {"ms": took, "accepts/s": [rate]}

    def known(self, domains: int) -> Samples:
        """Define so many guests, which stay."""
        while self._defined < domains:
            self._own.defineXML(self._next())
            self._defined += 1
        return {}

    def list_all(self, times: int) -> Samples:
        """All guests: what one call tells of each (getAllDomainStats), names alone, and the whole XML of each."""
        names, bulk, xml = [], [], []
        for _ in range(times):
            begun = time.perf_counter()
            found = self._own.getAllDomainStats()
            bulk.append(_ms(begun))
            assert len(found) == self._defined, found
            begun = time.perf_counter()
            domains = self._own.listAllDomains()
            names.append(_ms(begun))
            for each in domains:
                each.XMLDesc()
            xml.append(_ms(begun))
        return {"ms": bulk, "names ms": names, "XML ms": xml}

    def death(self, times: int) -> Samples:
        """SIGKILL for a guest until a subscriber is called."""
        took = []
        for _ in range(times):
            made = self._own.createXML(self._next())
            pid = int((self._directory / "run/libvirt/qemu/run" / f"{made.name()}.pid").read_text())
            name, heard = "", 0.0
            begun = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            while name != made.name():
                name, heard = self._deaths.get(timeout=EVENT_LIMIT_S)
            took.append((heard - begun) * 1000)
        return {"ms": took}

    def memory(self, running: int) -> Samples:
        """Resident memory of the daemon with so many guests that run; they are ended afterwards."""
        assert self._daemon is not None
        made = [self._own.createXML(self._next()) for _ in range(running)]
        lines = Path(f"/proc/{self._daemon.pid}/status").read_text().splitlines()
        for guest in made:
            guest.destroy()
        return {"MiB": [next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))]}

    def _create_together(self, clients: int, each: int) -> float:
        made: list[Any] = []

        def work() -> None:
            own = self.connect()
            for _ in range(each):
                made.append(own.createXML(self._next()))

        rate = together(clients, clients * each, work)
        for guest in made:
            guest.destroy()
        return rate

    def _next(self) -> str:
        self._made += 1
        return domain(f"guest-{self._made}", self._image, 64)

    def _undefine(self, domains: Iterable[Any]) -> None:
        for each in domains:
            each.undefine()

    def _events(self) -> None:
        while True:
            self._libvirt.virEventRunDefaultImpl()

    def _happened(self, guest: Any, event: int) -> None:
        if event == self._libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._deaths.put((guest.name(), time.perf_counter()))


def together(clients: int, times: int, work: Callable[[], None]) -> float:
    """How often per second something happens that so many threads do at once."""
    with ThreadPoolExecutor(clients) as pool:
        begun = time.perf_counter()
        for each in [pool.submit(work) for _ in range(clients)]:
            each.result()
        return times / (time.perf_counter() - begun)


def reap() -> None:
    """Be the parent of what is left alone below us, and wait for all of it."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def wait() -> None:
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0.01)

    threading.Thread(target=wait, daemon=True).start()


def _ms(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000


def become_nobody(directory: Path) -> None:
    """Root gives itself up: root's libvirtd would use the host's own places, and probe a /dev/kvm of root's alone."""
    if os.geteuid() == 0:
        for path in (directory, *directory.iterdir()):
            os.chown(path, NOBODY, NOBODY)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    os.chdir(directory)


def main() -> None:
    """Answer until there are no more questions."""
    directory = Path(sys.argv[1])
    peer = Peer(directory, sys.argv[2])
    become_nobody(directory)
    reap()
    try:
        peer.start()
        print("ready", flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            print(json.dumps(getattr(peer, asked.pop("do"))(**asked)), flush=True)
    except Exception as error:  # noqa: BLE001 - whatever it was, the other end has to say it
        print(f"error {type(error).__name__}: {error}", flush=True)
    finally:
        peer.close()


if __name__ == "__main__":
    main()
