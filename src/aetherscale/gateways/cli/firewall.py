"""`firewall`: what reaches virtual machines, and where they may send."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import bad_usage
from aetherscale.gateways.cli.firewall_vms import VM_COMMANDS
from aetherscale.gateways.cli.firewall_watch import WATCH
from aetherscale.gateways.cli.grammar import Argument, Command, Group, Option
from aetherscale.gateways.cli.history import opened_log, position
from aetherscale.gateways.cli.objects import carry_out_and_tell, done, each_named, list_objects
from aetherscale.gateways.cli.past import AT
from aetherscale.gateways.cli.values import positive
from aetherscale.gateways.cli.views import WIDE, show_to_human
from aetherscale.gateways.cli.work import WAIT_OPTIONS, info

_RULES = (
    "A rule is DIRECTION:PROTOCOL, then ports or types, then whom it is about: in:tcp:80,443, in:tcp:8000-8100, "
    "in:tcp:22:from=10.0.0.0/8, in:any:from=group/web, in:icmp:echo-request, out:udp:53:to=fd00::/8. The direction is "
    "`in` or `out`; the protocol is `tcp`, `udp`, `icmp` (which is ICMPv6 too) or `any`. Without from= or to= it is "
    "about everything, of IPv4 and IPv6. There is no rule that denies, and their order means nothing."
)


def _create(context: Context) -> None:
    values = context.values
    options = {"name": values["NAME"], "rules": values["allow"]}
    _work(context, "create-group", options, use="firewall attach VM")


def _set(context: Context) -> None:
    values = context.values
    if bool(values["allow"]) == values["nothing"]:
        wrong = "--allow and --nothing contradict each other" if values["nothing"] else "--allow is missing: a rule"
        raise bad_usage(
            f"{context.parsed.name}: {wrong}", "give all rules that the group is to have, or --nothing for none"
        )
    options: dict[str, Any] = {
        "group": values["NAME"],
        "rules": values["allow"],
        "keep-established": values["keep-established"],
    }
    if values["revision"] is not None:
        options["revision"] = values["revision"]
    _work(context, "set-rules", options, use="firewall group show")


def _delete(context: Context) -> int:
    def delete(name: str) -> Mapping[str, Any]:
        return done(context, "group", "delete-group", {"group": name}, subject=name)

    return each_named(context, "group", delete)


def _work(context: Context, task: str, options: Mapping[str, Any], use: str) -> None:
    carry_out_and_tell(context, "group", task, options, subject=context.values["NAME"], use=use)


def _list(context: Context) -> None:
    list_objects(
        context, "group", none="no groups; to create one: aetherscale firewall group create web --allow in:tcp:80"
    )


def _show(context: Context) -> None:
    view = info(context, "group", context.values["NAME"])
    if context.out.json:
        context.out.value(view)
        return
    rules = "\n".join(rule["text"] for rule in view["rules"])
    vms = (item["vm"] for item in context.client.items("compute", "list-vms", {}, node=view["node"]))
    bearing = [vm["name"] for vm in vms if any(group["group-id"] == view["id"] for group in vm["groups"])]
    others = (item["group"] for item in context.client.items("firewall", "list-groups", {}, node=view["node"]))
    naming = [each["name"] for each in others if any(rule["group-id"] == view["id"] for rule in each["rules"])]
    more = {"rules": rules or "nothing is allowed", "vms": ", ".join(bearing), "named-by": ", ".join(naming)}
    show_to_human(context.out, {**view, **more}, context.program.now_us())


def _explain(context: Context) -> None:
    found = asyncio.run(_at(context)) if context.values["at"] is not None else _now(context)
    if context.out.json:
        context.out.value(found)
        return
    leads = f", where the forward {found['forward']} leads," if found["forward"] else ""
    rule = f" by the rule {found['rule']}" if found["rule"] else ""
    word = "passes" if found["passes"] else "does not pass"
    context.out.paragraph(f"{found['packet']} from {found['source']} to {found['target']}{leads} {word}{rule}.")
    context.out.paragraph(found["because"])
    for other in found.get("others", ()):
        aim = "let it pass" if found["passes"] else "end that"
        context.out.paragraph(f"But now {other['what']}. To {aim}, {other['remedy']}")


def _now(context: Context) -> Any:
    return context.client.result("firewall", "explain", {each: context.values[each] for each in _ENDS})


async def _at(context: Context) -> Any:
    from aetherscale.debugger.openings import explained

    async with opened_log(context) as log:
        past = await log.state_at(await position(context, log, context.values["at"]), deleted=False)
    context.out.note(f"as of event {past.position} of node {past.node}")
    return msgspec.to_builtins(explained(past, context.settings.tenant, *(context.values[each] for each in _ENDS)))


_ENDS = ("from", "to", "port")
_NAME = Argument("NAME", "the name or id of the group", completes="group")
_ALLOW = Option("allow", "a rule, as in:tcp:80,443", "RULE", many=True)

_GROUP = Group(
    "group",
    "sets of rules that VMs bear",
    (
        Command(
            "create",
            "create a group of rules",
            _create,
            arguments=(Argument("NAME", "the name of the group"),),
            options=(_ALLOW, *WAIT_OPTIONS),
            examples=(
                "aetherscale firewall group create web --allow in:tcp:80,443 --allow in:icmp",
                "aetherscale firewall group create db --allow in:tcp:5432:from=group/web",
            ),
            details=(
                "A VM with groups takes exactly what its groups allow, wherever it comes from. It sends anywhere, "
                f"unless a group has a rule `out`: then exactly that. Answers to what was allowed pass.\n\n{_RULES}"
            ),
        ),
        Command(
            "list",
            "list all groups, sorted by name",
            _list,
            options=(Option("all", "include deleted groups"), WIDE),
            examples=("aetherscale firewall group list", "aetherscale firewall group list --json"),
        ),
        Command(
            "show",
            "show the rules of a group, and all other details",
            _show,
            arguments=(_NAME,),
            examples=("aetherscale firewall group show web",),
        ),
        Command(
            "set",
            "set the rules of a group, all of them",
            _set,
            arguments=(_NAME,),
            options=(
                _ALLOW,
                Option("nothing", "let the group allow nothing"),
                Option("revision", "the rules-revision that was shown; another one is refused", "N", positive),
                Option("keep-established", "let flows go on that are no longer allowed"),
                *WAIT_OPTIONS,
            ),
            examples=(
                "aetherscale firewall group set web --allow in:tcp:443 --allow in:icmp",
                "aetherscale firewall group set web --nothing",
            ),
            details=(
                "The rules take effect at once for every VM that bears the group, and flows that they no longer allow "
                "end. With --revision nothing is set where another caller has set rules in between.\n\n"
                f"{_RULES}"
            ),
        ),
        Command(
            "delete",
            "delete groups that no VM bears and no rule names",
            _delete,
            arguments=(replace(_NAME, help="the name or id; several may be given", many=True),),
            options=WAIT_OPTIONS,
            examples=("aetherscale firewall group delete web",),
        ),
    ),
)

_EXPLAIN = Command(
    "explain",
    "say whether something passes, and what decides it",
    _explain,
    options=(
        Option("from", "a VM, `host`, or an address", "END", needed=True, completes="vm"),
        Option("to", "a VM, `host`, or an address", "END", needed=True, completes="vm"),
        Option("port", "what is sent: tcp/443, udp/53, icmp or icmp/echo-request", "WHAT", needed=True),
        AT,
    ),
    examples=(
        "aetherscale firewall explain --from 192.0.2.7 --to web --port tcp/443",
        "aetherscale firewall explain --from web --to db --port tcp/5432 --at yesterday",
    ),
    details=(
        "The answer is about what begins a conversation; answers to what passes pass as well. What is sent to `host`, "
        "or to the address of a router, goes where a forward leads. The answer follows from the log "
        "alone: with --at, from what the log had then, which needs the state directory and no server."
    ),
)

FIREWALL = Group("firewall", "what reaches VMs, and where they may send", (_GROUP, *VM_COMMANDS, _EXPLAIN, WATCH))
