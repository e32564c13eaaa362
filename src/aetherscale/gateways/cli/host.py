"""`doctor`, `host`, `demo` and `nats-context`: what concerns this host rather than a node's objects."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from aetherscale import service
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import DONE, FAILED, Failure, bad_usage
from aetherscale.gateways.cli.grammar import Command, Group, Option
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
            out.line(f"{finding.status:<7}  {finding.check:<{width}}  {finding.found}")
            if finding.mend:
                out.line(f"{'':<7}  {'':<{width}}  mend: {finding.mend}")
        errors = sum(finding.status == "error" for finding in findings)
        warnings = sum(finding.status == "warning" for finding in findings)
        summary = f"{count(errors, 'error')}, {count(warnings, 'warning')}"
        out.line(summary if errors or warnings else "all is well")
    return FAILED if any(finding.status == "error" for finding in findings) else DONE


def _set_up(context: Context) -> None:
    dry_run = context.values["dry-run"]
    _tell(context, context.program.set_up(dry_run))
    if not context.out.json and not dry_run:
        context.out.note(f"next: usermod -aG {service.GROUP} YOU; then log in again, and: aetherscale vm list")


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
    "check all that a node needs, and say what mends it",
    _doctor,
    reads="host",
    examples=("aetherscale doctor", "aetherscale doctor --json"),
    details=(
        "Looks at Python, the packages, nats-server, QEMU and its jail, KVM by a proof, memory, the state directory "
        "and the log. An error is what keeps a node from its work, a warning what makes it slower or less safe. Exit "
        "status 1 if there are errors."
    ),
)

_DRY_RUN = Option("dry-run", "only say what there is to do")

HOST = Group(
    "host",
    "make this host run a node as a service",
    (
        Command(
            "setup",
            "a user, a state directory and a service for a node, started now and at each boot",
            _set_up,
            options=(_DRY_RUN,),
            examples=("aetherscale host setup --dry-run", "aetherscale host setup"),
            details=(
                "Needs systemd and root. Installs what is missing of Debian's packages (QEMU), makes the system user "
                "aetherscale, /var/lib/aetherscale and /etc/aetherscale/aetherscale.toml, links the program to "
                "/usr/local/bin, and starts aetherscale.service for this very installation. The members of the group "
                "aetherscale may use the node: over its virtual machines they are as good as root. What is so already "
                "is left as it is, so run it again at any time. After an upgrade, or a change of the settings, it "
                "restarts the node; virtual machines run on."
            ),
        ),
        Command(
            "remove",
            "take the service out again; virtual machines run on, and the state stays, unless --purge",
            _take_out,
            options=(
                _DRY_RUN,
                Option("purge", "also remove what it made: virtual machines, images, log, settings, user, group"),
                Option("kill", "with --purge: end the virtual machines that still run"),
            ),
            examples=("aetherscale host remove", "aetherscale host remove --purge --dry-run"),
            details=(
                "Without --purge the state stays where it is, and `host setup` takes it up again. With it nothing is "
                "left but the program itself and Debian's packages."
            ),
        ),
    ),
)

DEMO = Command(
    "demo",
    "from nothing to a ready VM and back, in a temporary directory",
    _demo,
    examples=("aetherscale demo",),
    details=(
        "Starts a node of its own in a temporary state directory, builds the image `tiny`, boots a VM until its guest "
        "is ready, shows its events, the state replayed from the log and why it is so, stops and deletes it, and "
        "proves that nothing is left. Exit status 1 where anything is not as it should be."
    ),
)

NATS_CONTEXT = Command(
    "nats-context",
    "let the `nats` program know the node's server",
    _nats_context,
    options=(
        Option("name", "the name of the context", "NAME", _name, default="aetherscale"),
        Option("select", "also make it the one that `nats` uses by default"),
    ),
    examples=("aetherscale nats-context --select", "nats --context aetherscale micro ls"),
    details=(
        "Copies the server's address and credentials (an operator's) from the state directory into a context file of "
        "the `nats` command line, readable by you alone."
    ),
)
