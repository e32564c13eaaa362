"""`doctor`, `host`, `demo` and `nats-context`: what concerns this host rather than a node's objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import DONE, FAILED, Failure
from aetherscale.gateways.cli.grammar import Command, Group, Option
from aetherscale.gateways.cli.output import harmless
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
    _tell(context, context.program.set_up)
    if not context.out.json and not context.values["dry-run"]:
        context.out.note("next: aetherscale doctor; journalctl -u aetherscale")


def _take_out(context: Context) -> None:
    _tell(context, context.program.take_out)


def _tell(context: Context, work: Callable[[bool], Iterator[Step]]) -> None:
    """Each step as soon as it is done."""
    for step in work(context.values["dry-run"]):
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
    source = settings.state_dir / FILE_NAME
    try:
        content = source.read_bytes()
    except FileNotFoundError:
        raise Failure(404, f"there is no {source}", hint="aetherscale serve", status=FAILED) from None
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
                "Needs systemd and root. Makes the system user aetherscale, /var/lib/aetherscale, and "
                "aetherscale.service for this very installation, which it starts. The node may make network devices "
                "and nothing else that a user may not; its virtual machines are units with limits. What is so already "
                "is left as it is, so it may be run again at any time, as after an upgrade."
            ),
        ),
        Command(
            "remove",
            "take the service out again; virtual machines run on, and the state stays",
            _take_out,
            options=(_DRY_RUN,),
            examples=("aetherscale host remove",),
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
