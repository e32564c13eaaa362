"""`doctor`, `host`, `demo` and `nats-context`: what concerns this host rather than a node's objects."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from aetherscale import service
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import DONE, FAILED, Failure, bad_usage
from aetherscale.gateways.cli.grammar import Command, Group, Option
from aetherscale.gateways.cli.hostbridge import (
    BRIDGE,
    DRY_RUN,
    OPTIONS,
    PART,
    require_no_bridge_options,
    set_up_bridge,
)
from aetherscale.gateways.cli.output import harmless
from aetherscale.gateways.cli.place import start, told_in
from aetherscale.gateways.cli.program import Step
from aetherscale.gateways.cli.views import count

PRIVATE = 0o700


def _doctor(context: Context) -> int:
    findings = context.program.doctor(context.settings)
    out = context.out
    if out.json:
        out.value(findings)
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            out.paragraph(f"{finding.status:<7}  {finding.check:<{width}}  {finding.found}", 11 + width)
            if finding.remedy:
                out.paragraph(f"{'':<7}  fix: {finding.remedy}", 14)
        errors = sum(finding.status == "error" for finding in findings)
        warnings = sum(finding.status == "warning" for finding in findings)
        summary = f"{count(errors, 'error')}, {count(warnings, 'warning')}"
        out.line(summary if errors or warnings else "all is well")
    return FAILED if any(finding.status == "error" for finding in findings) else DONE


def _set_up(context: Context) -> None:
    dry_run = context.values["dry-run"]
    if context.values["PART"] is not None:
        set_up_bridge(context, _tell)
        return
    require_no_bridge_options(context)
    _tell(context, context.program.set_up(dry_run, context.values["networks"]))
    if not context.out.json and not dry_run:
        context.out.note(f"next: usermod -aG {service.GROUP} YOU; then log in again and type: aetherscale vm list")


def _take_out(context: Context) -> None:
    dry_run, purge = context.values["dry-run"], context.values["purge"]
    if context.values["kill"] and not purge:
        raise bad_usage("host remove: --kill is a part of --purge", "without it virtual machines run on")
    _tell(context, context.program.take_out(dry_run, purge, context.values["kill"]))
    if context.out.json or dry_run:
        return
    if purge:
        context.out.note(f"left: the program itself, in {sys.prefix}, and Debian's packages")
    else:
        context.out.note(
            f"kept: {service.STATE_DIR} with disks, images and the log; {service.CONFIG.parent}; the user "
            f"{service.USER}. Its virtual machines run on. To remove all of that too: host remove --purge"
        )


def _tell(context: Context, steps: Iterator[Step]) -> None:
    """Each step as soon as it is done."""
    for step in steps:
        if context.out.json:
            context.out.json_line(step)
        else:
            context.out.line(f"{step.status:<7}  {step.what}")


def _demo(context: Context) -> int:
    return context.program.demo()


def _nats_context(context: Context) -> None:
    from aetherscale.bus.endpoint import FILE_NAME
    from aetherscale.statedir import write_file

    settings, name = context.settings, context.values["name"]
    source = told_in(settings) / FILE_NAME
    try:
        content = source.read_bytes()
    except FileNotFoundError:
        raise Failure(404, f"there is no {source}", hint=start(settings), status=FAILED) from None
    except OSError as error:
        raise Failure(500, f"{source} cannot be read: {error.strerror}") from None
    directory = _configuration(context) / "nats" / "context"
    directory.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    write_file(directory / f"{name}.json", content)
    if context.values["select"]:
        (directory.parent / "context.txt").write_text(name)
    if context.out.json:
        context.out.value({"context": name, "file": str(directory / f"{name}.json")})
    else:
        context.out.line(f"installed {directory / f'{name}.json'}")
        context.out.note(f"next: nats --context {name} micro ls")


def _configuration(context: Context) -> Path:
    found = context.program.environ.get("XDG_CONFIG_HOME", "")
    return Path(found) if found.startswith("/") else Path(context.program.environ.get("HOME") or "/") / ".config"


def _name(text: str) -> str:
    if not text or text != harmless(text) or "/" in text or text.startswith("."):
        raise ValueError("expected the name of a file without its ending")
    return text


DOCTOR = Command(
    "doctor",
    "check what a node needs, and say how to fix it",
    _doctor,
    reads="host",
    examples=("aetherscale doctor", "aetherscale doctor --json"),
    details=(
        "Checks Python and its packages, nats-server, QEMU and its jail, KVM by running a program on it, memory, the "
        "state directory and the log. An error keeps a node from working. A warning makes it slower or less safe. "
        "Exit status 1 if there are errors."
    ),
)

HOST = Group(
    "host",
    "run a node on this host as a service",
    (
        Command(
            "setup",
            "install the service, and start it now and at every boot",
            _set_up,
            arguments=(PART,),
            options=(DRY_RUN, Option("networks", "also prepare the host for virtual networks"), *OPTIONS),
            examples=(
                "aetherscale host setup --dry-run",
                "aetherscale host setup",
                "aetherscale host setup --networks",
                "aetherscale host setup bridge --device eth0",
            ),
            details=(
                "Needs systemd and root. Installs Debian packages that are missing (QEMU), creates the system user "
                "aetherscale, /var/lib/aetherscale and /etc/aetherscale/aetherscale.toml, links the program to "
                "/usr/local/bin, and starts aetherscale.service from this installation.\n\n"
                "Members of the group aetherscale can use the node. Membership is as good as root over the virtual "
                "machines of the host.\n\n"
                "With --networks it also installs nftables and dnsmasq-base, and turns IP forwarding on, now and at "
                "every boot, in /etc/sysctl.d/60-aetherscale.conf. A device on which the host hears IPv6 router "
                "advertisements gets accept_ra = 2 first, so that the host keeps its default route. "
                "`host remove` removes that file.\n\n"
                "Run it again at any time: it only changes what is not yet as it should be. After an upgrade or a "
                "change of the settings it restarts the node. Virtual machines keep running.\n\n"
                "`host setup bridge` is a task of its own, a bridge in the place of a device of this host: "
                "`aetherscale host setup bridge --help`."
            ),
            parts={BRIDGE.name: BRIDGE},
        ),
        Command(
            "remove",
            "remove the service; VMs and the state stay, unless --purge is given",
            _take_out,
            options=(
                DRY_RUN,
                Option("purge", "also remove VMs, images, log, settings, user and group"),
                Option("kill", "with --purge: end the VMs that still run"),
            ),
            examples=("aetherscale host remove", "aetherscale host remove --purge --dry-run"),
            details=(
                "Without --purge virtual machines keep running, the state stays, and a later `host setup` uses it "
                "again. With --purge only the program itself and Debian's packages are left."
            ),
        ),
    ),
)

DEMO = Command(
    "demo",
    "create, show and delete VMs in a temporary directory",
    _demo,
    examples=("aetherscale demo",),
    details=(
        "Starts a node in a temporary state directory, builds the image `tiny`, and boots two VMs in a network, of "
        "which one pings the other by name. Fetches a page of one through a port of the host, closes the group that "
        "let it in, and explains why it no longer comes. Shows their events, the state replayed from the log, and why "
        "a VM is in it. Then deletes everything and checks that nothing is left. Exit status 1 if anything is not as "
        "it should be.\n\n"
        "A network takes root, and a host on which no other node has networks. Without, the demo says why, and boots "
        "one VM. Where the host forwards no packets, the other VM fetches the page."
    ),
)

NATS_CONTEXT = Command(
    "nats-context",
    "configure the `nats` program for the node's server",
    _nats_context,
    options=(
        Option("name", "the name of the context", "NAME", _name, default="aetherscale"),
        Option("select", "also make it the default context of `nats`"),
    ),
    examples=("aetherscale nats-context --select", "nats --context aetherscale micro ls"),
    details=(
        "Copies the address and the operator's credentials of the node's server from the state directory into a "
        "context file of the `nats` command line. Only you can read that file."
    ),
)
