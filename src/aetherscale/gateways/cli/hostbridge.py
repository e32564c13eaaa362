"""`host setup bridge`: a bridge in the place of a device of this host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from msgspec.structs import replace

from aetherscale.gateways.cli.failures import bad_usage
from aetherscale.gateways.cli.grammar import Argument, Command, Option
from aetherscale.gateways.cli.program import BridgeAsked, Step
from aetherscale.kernel.names import DEVICE_NAME_RULE, is_device_name

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

    from aetherscale.gateways.cli.context import Context

NAME = "host setup bridge"
NEXT = (
    "next, within 60 s, from where the host has to be reachable:\n"
    f"    aetherscale {NAME} --confirm\n"
    "else all is taken back by itself"
)


def set_up_bridge(context: Context, tell: Callable[[Context, Iterator[Step]], None]) -> None:
    """Set the bridge up, confirm it, or undo it; each step is told as it is done."""
    values, work = context.values, context.program.bridge
    if values["networks"]:
        raise bad_usage(f"{NAME}: --networks is for `host setup` alone", "aetherscale host setup --networks")
    given = [f"--{option.name}" for option in OPTIONS if values[option.name]]
    if values["confirm"] or values["undo"]:
        if len(given) > 1:
            raise bad_usage(f"{NAME}: {given[-1]} takes no other option than --dry-run, got {' '.join(given)}")
        tell(context, work(None, "confirm" if values["confirm"] else "undo", values["dry-run"]))
        return
    if values["device"] is None:
        raise bad_usage(f"{NAME}: --device is missing: whose place the bridge takes", "ip -br link")
    bridge = values["bridge"] or context.settings.public_bridge
    if bridge == values["device"]:
        raise bad_usage(f"{NAME}: --bridge: got {bridge!r}, which is the device itself", "give another name")
    asked = BridgeAsked(values["device"], bridge, tuple(values["address"]), tuple(values["gateway"]))
    told: list[Step] = []
    tell(context, _kept(work(asked, "set up", values["dry-run"]), told))
    if not context.out.json and any(step.status == "done" for step in told):
        context.out.note(NEXT)


def _kept(steps: Iterator[Step], told: list[Step]) -> Iterator[Step]:
    for step in steps:
        told.append(step)
        yield step


def require_no_bridge_options(context: Context) -> None:
    """Raises `Failure` where an option of the bridge is given without the word."""
    for option in OPTIONS:
        if context.values[option.name]:
            raise bad_usage(f"host setup: --{option.name} is for the bridge", f"aetherscale {NAME} --help")


def _device(text: str) -> str:
    if not is_device_name(text):
        raise ValueError(f"expected {DEVICE_NAME_RULE}")
    return text


def _address(text: str) -> IPv4Interface | IPv6Interface:
    from ipaddress import ip_interface

    try:
        if "/" not in text:
            raise ValueError
        return ip_interface(text)
    except ValueError:
        raise ValueError("expected an address with the length of its prefix, as 192.0.2.10/24") from None


def _gateway(text: str) -> IPv4Address | IPv6Address:
    from ipaddress import ip_address

    try:
        return ip_address(text)
    except ValueError:
        raise ValueError("expected the address of a router, as 192.0.2.1") from None


def _help_alone(context: Context) -> None:
    """The command that runs is `host setup`, which has the word."""
    raise AssertionError(context)


PART = Argument("PART", "`bridge`: only a bridge in the place of a device", required=False, choices=("bridge",))
DRY_RUN = Option("dry-run", "only print what would be done")
_OPTIONS = (
    Option("device", "the device whose place it takes", "DEVICE", _device),
    Option("bridge", "its name; the setting public-bridge, br0, if not given", "NAME", _device),
    Option("address", "an address of the host, in place of the device's of its family", "CIDR", _address, many=True),
    Option("gateway", "the default router of that family", "ADDRESS", _gateway, many=True),
    Option("confirm", "keep it, now and at every boot"),
    Option("undo", "give the device its addresses and routes back"),
)
OPTIONS = tuple(replace(option, help=f"bridge: {option.help}") for option in _OPTIONS)
_DETAILS = (
    "Makes a bridge that takes over the addresses, routes, MAC and MTU of a device, so that guests "
    "can be in the network of the host. Connections survive it. Unless it is confirmed within 60 s everything is as it "
    "was before, by itself, also where the session that typed it has died, or the host was rebooted. Confirmed, it is "
    "there at every boot (aetherscale-bridge.service). --undo takes it away at any time.\n\n"
    "It is refused for devices that a DHCP client, NetworkManager or systemd-networkd configures, for Wi-Fi, and for "
    "ports of another bridge: docs/public-bridge.md says what to do then."
)
BRIDGE = Command(
    "bridge",
    "put a bridge in the place of a device of this host",
    _help_alone,
    options=(DRY_RUN, *_OPTIONS),
    examples=(
        "aetherscale host setup bridge --device eth0 --dry-run",
        "aetherscale host setup bridge --device eth0",
        "aetherscale host setup bridge --confirm",
        "aetherscale host setup bridge --undo",
    ),
    details=_DETAILS,
)
"""Its help; the command itself is `host setup` with the word."""
