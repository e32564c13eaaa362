"""`firewall attach`, `detach` and `forward`: what a VM bears, and which ports of the host lead to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.grammar import Argument, Command, Group, Option
from aetherscale.gateways.cli.output import Layout
from aetherscale.gateways.cli.values import number
from aetherscale.gateways.cli.views import forward_text
from aetherscale.gateways.cli.work import WAIT_OPTIONS, carry_out, suggesting, taken

COMPONENT: Final = "firewall"
LAST_PORT: Final = 65535


def _port(text: str) -> int:
    """A port. Raises ValueError."""
    if not text.isascii() or not text.isdigit() or not 1 <= number(text) <= LAST_PORT:
        raise ValueError(f"expected a port from 1 to {LAST_PORT}")
    return int(text)


def _ports(text: str) -> tuple[int, int]:
    """`8080:80` as the port of the host and that of the guest. Raises ValueError."""
    host, colon, guest = text.partition(":")
    try:
        if colon:
            return _port(host), _port(guest)
    except ValueError:
        pass
    raise ValueError(f"expected HOST:GUEST, two ports from 1 to {LAST_PORT}, as 8080:80")


def _address(text: str) -> str:
    if not text:
        raise ValueError("expected an address of the host, as 192.0.2.7, or no such option for all of them")
    return text


def _attach(context: Context) -> None:
    _bear(context, "attach-group")


def _detach(context: Context) -> None:
    _bear(context, "detach-group")


def _bear(context: Context, task: str) -> None:
    values = context.values
    options = {"group": values["GROUP"], "keep-established": values["keep-established"]}
    with suggesting(context, "group", values["GROUP"]):
        vm, elapsed_s = _work(context, task, options)
    if not context.out.json:
        names = ", ".join(group["group"] for group in vm["groups"])
        context.out.line(f"{vm['name']} ({vm['id']}) bears {names or 'no group'}, after {elapsed_s:.1f} s")


def _add(context: Context) -> None:
    values = context.values
    host_port, guest_port = values["PORTS"]
    options = {"host-port": host_port, "guest-port": guest_port, "protocol": _protocol(context)}
    if values["address"] is not None:
        options["host-address"] = values["address"]
    vm, elapsed_s = _work(context, "add-forward", options)
    if context.out.json or not _is_applied(vm):
        return
    for item in context.client.items(COMPONENT, "list-forwards", {"vm-id": vm["id"]}):
        forward = item["forward"]
        if (forward["host-port"], forward["protocol"]) == (host_port, _protocol(context)):
            led = forward_text(forward, "leads to port")
            context.out.line(f"{led} of {vm['name']} ({vm['id']}), after {elapsed_s:.1f} s")
            if not item["let-in"]:
                context.suggest(_not_let_in(vm, item["rule"]))


def _not_let_in(vm: Mapping[str, Any], rule: str) -> str:
    """What is still to be done for what a forward leads to."""
    name = vm["name"]
    if not vm["groups"]:
        return (
            f"nothing from outside reaches {name} yet, since it bears no group; to let this in: aetherscale firewall "
            f"group create {name} --allow {rule}; aetherscale firewall attach {name} {name}. Then {name} takes nothing "
            "else, not even from its own network"
        )
    borne = vm["groups"][0]["group"]
    return f"no group of {name} lets this in yet; a rule that would, for one such as {borne}: {rule}"


def _remove(context: Context) -> None:
    options = {
        "host-port": context.values["HOST"],
        "protocol": _protocol(context),
        "keep-established": context.values["keep-established"],
    }
    vm, elapsed_s = _work(context, "remove-forward", options)
    if not context.out.json:
        port = f"{options['host-port']}/{options['protocol']}"
        context.out.line(f"{port} leads to {vm['name']} ({vm['id']}) no more, after {elapsed_s:.1f} s")


def _protocol(context: Context) -> str:
    return "udp" if context.values["udp"] else "tcp"


def _is_applied(vm: Mapping[str, Any]) -> bool:
    return bool(vm["rules-applied"] == vm["rules-revision"])


def _work(context: Context, task: str, options: Mapping[str, Any]) -> tuple[Mapping[str, Any], float]:
    name = context.values["VM"]
    with suggesting(context, "vm", name):
        vm, elapsed_s = carry_out(context, COMPONENT, task, {"vm-id": name, **options}, subject=name, kind="vm")
    if context.out.json:
        with taken(f"the groups and forwards of the VM {vm['name']} ({vm['id']}) have changed"):
            context.out.value(vm)
    return vm, elapsed_s


def _list(context: Context) -> None:
    name = context.values["VM"]
    options = {"vm-id": name} if name else {}
    with suggesting(context, "vm", name or ""):
        items = list(context.client.items(COMPONENT, "list-forwards", options))
    if context.out.json:
        context.out.value([{name: value for name, value in item.items() if name != "type"} for item in items])
    elif items:
        rows = [(forward_text(item["forward"]), item["name"], _let_in(item)) for item in items]
        context.out.table(("FORWARD", "VM", "LET IN"), rows, layout=Layout(fold=("VM",)))
    else:
        context.suggest("no forwards; to add one: aetherscale firewall forward add web 8080:80")


def _let_in(item: Mapping[str, Any]) -> str:
    if not item["let-in"]:
        return f"no: {item['rule']}"
    return f"yes, from {', '.join(item['from'])}" if item["from"] else "yes"


_VM = Argument("VM", "the name or id of the VM", completes="vm")
_GROUP = Argument("GROUP", "the name or id of the group", completes="group")
_KEEP = Option("keep-established", "let flows go on that its groups no longer allow")
_UDP = Option("udp", "of UDP, not of TCP")

VM_COMMANDS: Final[tuple[Command | Group, ...]] = (
    Command(
        "attach",
        "let a VM bear a group",
        _attach,
        arguments=(_VM, _GROUP),
        options=(_KEEP, *WAIT_OPTIONS),
        examples=("aetherscale firewall attach web http",),
        details=(
            "The VM takes exactly what its groups allow from then on. Flows that they do not allow end, unless "
            "--keep-established says otherwise."
        ),
    ),
    Command(
        "detach",
        "let a VM bear a group no more",
        _detach,
        arguments=(_VM, _GROUP),
        options=(_KEEP, *WAIT_OPTIONS),
        examples=("aetherscale firewall detach web http", "aetherscale firewall detach web http --keep-established"),
        details=(
            "Without its last group a VM takes anything from its own network and nothing from outside: what was begun "
            "from there ends, whatever is kept."
        ),
    ),
    Group(
        "forward",
        "ports of the host that lead to VMs",
        (
            Command(
                "add",
                "let a port of the host lead to a VM in a network of the kind nat",
                _add,
                arguments=(_VM, Argument("PORTS", "the port of the host and that of the guest, as 8080:80", _ports)),
                options=(
                    _UDP,
                    Option("address", "the address of the host; all of them if not given", "ADDRESS", _address),
                    *WAIT_OPTIONS,
                ),
                examples=(
                    "aetherscale firewall forward add web 8080:80",
                    "aetherscale firewall forward add dns 53:53 --udp --address 192.0.2.1",
                ),
                details="It opens nothing: the groups of the VM say what is let in, at the port of the guest.",
            ),
            Command(
                "remove",
                "let a port of the host lead to a VM no more",
                _remove,
                arguments=(_VM, Argument("HOST", "the port of the host", _port)),
                options=(
                    _UDP,
                    Option("keep-established", "let flows go on that it has led"),
                    *WAIT_OPTIONS,
                ),
                examples=("aetherscale firewall forward remove web 8080",),
                details=(
                    "Flows that it has led end, unless --keep-established says otherwise. Those that are kept end with "
                    "a later change of the VM's groups or forwards that keeps none, with its stop, and with a restart "
                    "of the node."
                ),
            ),
            Command(
                "list",
                "list all forwards, by the port of the host",
                _list,
                arguments=(Argument("VM", "only those of this VM", required=False, completes="vm"),),
                examples=("aetherscale firewall forward list", "aetherscale firewall forward list web --json"),
            ),
        ),
    ),
)
"""What `firewall` has beside groups."""
