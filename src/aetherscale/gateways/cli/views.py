"""How objects look to humans: tables of many, fields of one. Views are plain JSON objects here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from aetherscale.components import identities
from aetherscale.gateways.cli.grammar import Option
from aetherscale.gateways.cli.moments import ago, lasted, local, short_id
from aetherscale.gateways.cli.output import Layout, Output
from aetherscale.kernel.identity import NODE, Column, Unit

View = Mapping[str, Any]

DROPPED: Mapping[str, str] = {
    "mac": "from a MAC that is not the port's",
    "arp": "ARP in the name of another",
    "ipv4": "from foreign IPv4 addresses",
    "ipv6": "from foreign IPv6 addresses",
    "neighbor": "neighbor discovery in the name of another",
    "router": "what only a router may say",
    "dhcp": "what only a DHCP server may say",
    "ethertype": "neither ARP, IPv4 nor IPv6, or with a VLAN tag",
    "header": "fragments and extension headers; every guest's reports for multicast have one: harmless",
    "uninvited": "to the port, let in neither by its network nor by a group, and no answers",
    "forbidden": "sent by the port, though no group of it allows that",
}
"""What the kinds of dropped packets mean."""
OUTPUT_LINES: Final = 10
"""How many lines of what an init script has printed are shown among the rest."""
WIDE = Option("wide", "show full ids and times and all columns")


def show_table(out: Output, kind: str, views: Sequence[View], now_us: int, *, wide: bool = False) -> None:
    """A table of many objects of a kind."""
    (columns,) = (identity.columns for identity in identities() if identity.kind == kind)
    brief = out.terminal and not wide
    columns = tuple(column for column in columns if column.shown in ("", "brief" if brief else "wide"))
    rows = [tuple(_cell(_value(view, column), column.unit, now_us, brief) for column in columns) for view in views]
    names = tuple(column.heading for column in columns if column.is_name)
    one_node = (NODE.heading,) if len({view[NODE.field] for view in views}) < 2 else ()
    spare = sorted((column for column in columns if column.spare), key=lambda column: column.spare)
    layout = Layout(names, (*one_node, *(column.heading for column in spare)), wide=wide)
    out.table(tuple(column.heading for column in columns), rows, 1, layout)


def _value(view: View, column: Column) -> Any:
    value = view[column.field]
    if value is not None or not column.otherwise:
        return value
    return next((view[field] for field in column.otherwise if view[field] is not None), None)


def _cell(value: Any, unit: Unit, now_us: int, brief: bool) -> str:
    match unit:
        case _ if value is None:
            return "-"
        case "MiB" | "GiB":
            return f"{value}{unit[0]}"
        case "bytes":
            return size(value)
        case "addresses":
            return _addresses(value, brief)
        case "count":
            return str(len(value))
        case "moment":
            return ago(value, now_us) if brief else f"{value[:19]}Z"
        case "id" if brief:
            return short_id(value)
        case _:
            return str(value)


def _addresses(ports: Sequence[View], brief: bool) -> str:
    """The addresses of a VM's ports; with their network, where the VM is in several: `10.64.0.2 (lab)`.

    In brief it is the first IPv4 one, or the first, and how many there are besides: `10.64.0.2 +1`.
    """
    found = [(port["network"], [address["ip"] for address in port["addresses"]]) for port in ports]
    every = [ip for _, ips in found for ip in ips]
    if not every:
        return "-"
    if brief:
        first = next((ip for ip in every if ":" not in ip), every[0])
        return f"{first} +{len(every) - 1}" if len(every) > 1 else first
    if len(ports) == 1:
        return " ".join(every)
    return ", ".join(f"{' '.join(ips)} ({network})" for network, ips in found if ips)


def show_object(out: Output, view: View) -> None:
    """All that is known of one object, a field on each line, nested ones with dots."""
    out.fields(_flat("", view))


def show_to_human(out: Output, view: View, now_us: int) -> None:
    """The same; on a terminal with times as a human reads them."""
    show_object(out, {**view, **_since(out, view, now_us)})


def _since(out: Output, view: View, now_us: int) -> View:
    if not out.terminal or "since" not in view:
        return {}
    return {"since": f"{local(view['since'])} ({ago(view['since'], now_us)})"}


def show_vm_to_human(out: Output, vm: View, now_us: int) -> None:
    """All that is known of a VM; on a terminal with times as a human reads them."""
    shown = _with_ports(vm) | {"isolation": _isolation(vm)}
    del shown["process-user"]
    if vm.get("init-script"):
        shown["init-script"] = {**vm["init-script"], "output": _end_of_output(vm)}
    if (uptime_s := shown.pop("uptime-s", None)) is not None:
        shown["uptime"] = lasted(uptime_s) if out.terminal else f"{uptime_s} s"
    if vm.get("guest"):
        from aetherscale.gateways.cli.guestview import facts_text

        shown["guest"] = facts_text(vm["guest"])
    if vm.get("groups"):
        shown["groups"] = ", ".join(group["group"] for group in vm["groups"])
    if vm.get("ssh-keys"):
        shown["ssh-keys"] = "\n".join(map(_key, vm["ssh-keys"]))
    if vm.get("forwards"):
        shown["forwards"] = ", ".join(map(forward_text, vm["forwards"]))
    show_to_human(out, shown, now_us)


def _end_of_output(vm: View) -> str:
    """The last lines of what an init script has printed, and how to see the others."""
    lines = str(vm["init-script"].get("output") or "").rstrip("\n").split("\n")
    if len(lines) <= OUTPUT_LINES:
        return "\n".join(lines)
    said = (
        f"(the last {OUTPUT_LINES} of {len(lines)} lines; all that is known: aetherscale vm show {vm['name']} --json)"
    )
    return "\n".join([said, *lines[-OUTPUT_LINES:]])


def _with_ports(vm: View) -> dict[str, Any]:
    """A VM with a line for each of its ports, and lines for what was dropped of each, in the place of the data."""
    of_tap = {port["tap"]: port["network"] for port in vm["ports"]}
    shown: dict[str, Any] = {}
    for name, value in vm.items():
        match name:
            case "ports":
                shown |= {f"port {port['network']}": _port(port) for port in value}
            case "switches":
                shown |= {f"port vde:{switch['path']}": f"MAC {switch['mac']}; not filtered" for switch in value}
            case "leased":
                shown |= {f"leased {of_tap.get(tap, tap)}": ", ".join(addresses) for tap, addresses in value.items()}
            case "dropped":
                shown |= {f"dropped {of_tap.get(tap, tap)}": _dropped(kinds) for tap, kinds in value.items()}
            case _:
                shown[name] = value
    return shown


def _port(port: View) -> str:
    """`fd00::1, 10.64.0.2; MAC 02:…; tap aep…; also allowed 203.0.113.7/32`."""
    addresses = ", ".join(address["ip"] for address in port["addresses"])
    allowed = f"also allowed {', '.join(port['allowed'])}" if port["allowed"] else ""
    card = f"card {port['card']}" if port.get("card", "plugged") != "plugged" else ""
    return "; ".join(filter(None, (addresses, f"MAC {port['mac']}", f"tap {port['tap']}", allowed, card)))


def _dropped(kinds: Mapping[str, int]) -> str:
    """How many packets of a port were dropped and why, a line for each kind."""
    lines = ((f"{count(number, 'packet')} ({kind})", DROPPED.get(kind)) for kind, number in kinds.items())
    return "\n".join(f"{line}: {meaning}" if meaning else line for line, meaning in lines)


def _key(line: str) -> str:
    """A public key as a person tells it from others: its type, and its comment or else its last characters."""
    kind, body, *comment = line.split(" ", 2)
    return f"{kind} {comment[0] if comment else f'…{body[-12:]}'}"


def _isolation(vm: View) -> str | None:
    """What stands between a running guest and the host: the view's word, and why. None where it does not run."""
    if vm["accelerator"] is None:
        return None
    match vm["process-user"]:
        case "root":
            why = "QEMU runs as root"
        case "node":
            why = "QEMU runs as the node's user"
        case user:
            boundary = "hardware virtualization" if vm["accelerator"] == "kvm" else "emulation is no security boundary"
            why = boundary + ("; QEMU has a user of its own" if user == "own" else "")
    return f"{vm['isolation']}: {why}"


def forward_text(forward: View, to: str = "to") -> str:
    """`8080/tcp to 80`, or `192.0.2.1 8080/tcp to 80` where the host's address is named."""
    host = " ".join(filter(None, (forward["address"], f"{forward['host-port']}/{forward['protocol']}")))
    return f"{host} {to} {forward['guest-port']}"


def item_text(field: str, item: Any) -> str:
    """One of the values of a field that has many, on one line, as `vm show` and `firewall group show` have it."""
    if not isinstance(item, Mapping):
        return str(item)
    match field:
        case "ports":
            return f"{item['network']}: {_port(item)}"
        case "switches":
            return f"vde:{item['path']}: MAC {item['mac']}"
        case "forwards":
            return forward_text(item)
        case "groups":
            return str(item["group"])
        case "rules":
            return str(item["text"])
        case _:
            return ", ".join(f"{name} {value}" for name, value in _flat("", item) if value not in (None, "", []))


def _flat(prefix: str, view: View) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in view.items():
        if isinstance(value, Mapping):
            pairs += _flat(f"{prefix}{name}.", value)
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            for number, each in enumerate(value):
                pairs += _flat(f"{prefix}{name}.{number}.", each)
        elif isinstance(value, bool):
            pairs.append((prefix + name, "yes" if value else "no"))
        elif isinstance(value, list):
            pairs.append((prefix + name, ", ".join(map(str, value))))
        else:
            pairs.append((prefix + name, value))
    return pairs


def size(size_bytes: int | None) -> str:
    """A number of bytes in the largest unit that it fills."""
    if size_bytes is None:
        return "-"
    amount = float(size_bytes)
    for unit in ("B", "K", "M", "G"):
        if amount < 1024:
            return f"{amount:.0f}{unit}" if unit == "B" or amount >= 10 else f"{amount:.1f}{unit}"
        amount /= 1024
    return f"{amount:.1f}T"


def count(number: int, what: str) -> str:
    """`1 event`, `2 events`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
