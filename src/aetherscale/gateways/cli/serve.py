"""`serve`: run a node in the foreground."""

from __future__ import annotations

import resource
import shlex

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.grammar import Command, Option
from aetherscale.gateways.cli.program import Ready
from aetherscale.gateways.cli.views import count

REFUSALS = ("the server ", "the account ")
"""How it begins what a server that is there has against us."""


def _serve(context: Context) -> None:
    out = context.out
    if context.parsed.is_default and not out.json:
        out.line("no command was given, so this runs a node; aetherscale --help lists the commands")

    def on_ready(ready: Ready) -> None:
        if out.json:
            out.json_line(
                {
                    "node": ready.node,
                    "state-dir": str(ready.state_dir),
                    "nats": ready.nats_url,
                    "connected": ready.connected,
                    "trouble": ready.trouble,
                    "vms": ready.counts.get("vms", 0),
                    "head": ready.head,
                    **ready.doors,
                    **ready.notes,
                }
            )
            return
        state_dir, vms = shlex.quote(str(ready.state_dir)), ready.counts.get("vms", 0)
        refused = ready.trouble if ready.trouble.startswith(REFUSALS) else ""
        away = "" if ready.connected else ", which cannot be reached yet; the node keeps trying"
        if refused:
            away = f", which cannot be used: {refused}; the node keeps trying"
        out.fields(
            (
                (
                    "state",
                    f"{ready.state_dir}, {count(ready.head, 'event')}, {count(vms, 'virtual machine')}",
                ),
                ("nats", f"{ready.nats_url}{away}; credentials in {ready.state_dir / 'nats.json'}"),
                *(ready.doors or {"http": "closed, as --no-http says"}).items(),
                *ready.notes.items(),
                ("next", f"aetherscale --state-dir {state_dir} vm list"),
            )
        )
        later = "takes commands as soon as its NATS server is there"
        if refused:
            later = f"takes commands as soon as its NATS server can be used: {refused}"
        now = "takes commands" if ready.connected else later
        simulated = context.settings.simulated
        guests = "virtual machines, which are simulated, end with it" if simulated else "virtual machines keep running"
        out.line(f"ready: node {ready.node} {now}; Ctrl-C ends it, {guests}")

    # Requests have secrets in them, which a core file would keep, be it of this program or of the nats-server.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    context.program.serve(context.settings, on_ready)


SERVE = Command(
    "serve",
    "run a node in the foreground",
    _serve,
    options=(
        Option("node", "the name of the node; if not given, the name in its log, else the host's name", "NAME"),
        Option(
            "accelerator",
            "how guests are run; auto uses KVM where a test shows that it works",
            "HOW",
            choices=("auto", "kvm", "tcg"),
        ),
        Option(
            "supervisor",
            "how VM processes are supervised; auto uses systemd units where possible",
            "WHAT",
            choices=("auto", "systemd", "detached"),
        ),
        Option(
            "allow-unisolated",
            "start VMs even if QEMU would run as root or as the node's own user; only for guests that you trust",
        ),
        Option("simulated", "simulate the guests in memory; they and their disks end with the node"),
        Option("stream-max-bytes", "how large the copy of the log on the NATS server may get; 1G if not given", "SIZE"),
        Option("cache-dir", "where downloaded packages are cached", "DIR", completes="dir"),
        Option(
            "image-dirs",
            "directories, separated by :, from which images may be imported by path; none if not given",
            "DIRS",
        ),
        Option(
            "image-networks",
            "private networks, separated by commas, from which images may be downloaded, like 10.0.0.0/8",
            "NETWORKS",
        ),
        Option(
            "image-catalogue",
            "a catalogue of images, as a file or an http or https URL, beside the one that comes with the program",
            "SOURCE",
            completes="file",
        ),
        Option("http", "where HTTP is open, on the loopback; 127.0.0.1:8470 if not given", "HOST:PORT"),
        Option("no-http", "open no HTTP, on no port and no socket"),
    ),
    examples=(
        "aetherscale",
        "aetherscale serve --state-dir ./state --node host1",
        "aetherscale serve --nats nats://10.0.0.1:4222 --nats-creds ./node.creds",
    ),
    details=(
        "Prints the state directory, the NATS server and what to type next. A line that starts with `ready` means that "
        "it takes commands. SIGTERM or Ctrl-C ends it. Virtual machines keep running, and the next node on the same "
        "state directory finds them again. Where a script starts it in the background (`aetherscale serve &`), its "
        "shell has SIGINT ignored: end it with SIGTERM, which always works.\n\n"
        "Everybody on this host can read the arguments of a program. So give a password or a token for another NATS "
        "server by --nats-creds, --nats-nkey or --nats-token-file, in the environment "
        "(AETHERSCALE_NATS_URL=nats://user:password@10.0.0.1:4222), or in the file of settings, and not in --nats.\n\n"
        "Settings can be flags, variables in the environment (AETHERSCALE_STATE_DIR), or lines of a TOML file "
        '(`state-dir = "/srv/aetherscale"`). Flags override the environment, which overrides the file. The file is '
        "/etc/aetherscale/aetherscale.toml for root, else ~/.config/aetherscale/aetherscale.toml."
    ),
)
