"""`serve`: run a node in the foreground."""

from __future__ import annotations

import shlex

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import later_version
from aetherscale.gateways.cli.grammar import Command, Option
from aetherscale.gateways.cli.program import Ready
from aetherscale.gateways.cli.views import count

REFUSALS = ("the server ", "the account ")
"""How it begins what a server that is there has against us."""


def _serve(context: Context) -> None:
    if context.values["http"] is not None:
        raise later_version("serve --http", "this version is spoken to over NATS and by the command line")
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
                    "vms": ready.vms,
                    "head": ready.head,
                    "isolation": ready.isolation,
                }
            )
            return
        state_dir = shlex.quote(str(ready.state_dir))
        refused = ready.trouble if ready.trouble.startswith(REFUSALS) else ""
        away = "" if ready.connected else ", which cannot be reached yet and is tried again and again"
        if refused:
            away = f", which cannot be used: {refused}; it is tried again and again"
        out.fields(
            (
                ("state", f"{ready.state_dir}, {count(ready.head, 'event')}, {count(ready.vms, 'virtual machine')}"),
                ("nats", f"{ready.nats_url}{away}; credentials in {ready.state_dir / 'nats.json'}"),
                ("http", "none in this version"),
                ("isolation", ready.isolation),
                ("next", f"aetherscale --state-dir {state_dir} vm list"),
            )
        )
        later = "takes commands as soon as its NATS server is there"
        if refused:
            later = f"takes commands as soon as its NATS server can be used: {refused}"
        now = "takes commands" if ready.connected else later
        out.line(f"ready: node {ready.node} {now}; Ctrl-C ends it, virtual machines run on")

    context.program.serve(context.settings, on_ready)


SERVE = Command(
    "serve",
    "run a node in the foreground",
    _serve,
    options=(
        Option(
            "node", "the name of the node; if not given, that of the log that is there, else the host's name", "NAME"
        ),
        Option(
            "accelerator",
            "how guests are run; auto takes KVM once it has proved to work here",
            "HOW",
            choices=("auto", "kvm", "tcg"),
        ),
        Option(
            "supervisor",
            "what is around the processes of guests; auto takes systemd's units where they can be made",
            "WHAT",
            choices=("auto", "systemd", "detached"),
        ),
        Option(
            "allow-unisolated",
            "start guests even where QEMU would run as root or as the node's own user: only guests that you trust",
        ),
        Option("simulated", "simulate the guests: nothing on the host is touched but the state directory"),
        Option("stream-max-bytes", "what the copy of the log on the NATS server may take; 1G if not given", "SIZE"),
        Option("cache-dir", "where what can be fetched again is kept", "DIR", completes="dir"),
        Option(
            "image-dirs",
            "directories, with : between, below which images may be imported by path; none if not given",
            "DIRS",
        ),
        Option(
            "image-networks",
            "networks, with commas, that images may be downloaded from beside public ones, like 10.0.0.0/8",
            "NETWORKS",
        ),
        Option("http", "not in this version", "HOST:PORT"),
        Option("no-http", "serve no HTTP; this version has none"),
    ),
    examples=(
        "aetherscale",
        "aetherscale serve --state-dir ./state --node host1",
        "aetherscale serve --nats nats://user:password@10.0.0.1:4222",
    ),
    details=(
        "Says on stdout where the state is, which NATS server it uses and what to type next; a line that starts with "
        "`ready` says that it takes commands. SIGTERM or Ctrl-C ends it. Virtual machines run on, and the next node on "
        "the same state directory finds them again.\n\n"
        "Settings: flags stand over AETHERSCALE_* in the environment, which stand over a TOML file "
        "(/etc/aetherscale/aetherscale.toml for root, else ~/.config/aetherscale/aetherscale.toml), e.g. "
        'AETHERSCALE_STATE_DIR and `state-dir = "/srv/aetherscale"`.'
    ),
)
