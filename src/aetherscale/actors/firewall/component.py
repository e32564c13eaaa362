"""The firewall component: security groups."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from aetherscale.actors.firewall import IDENTITY
from aetherscale.actors.firewall.model import commands, events
from aetherscale.actors.firewall.model.commands import (
    CreateGroupOptions,
    ExplainOptions,
    GroupOptions,
    GroupSpec,
    ListGroupsOptions,
    Rule,
    RuleOptions,
    SetRulesOptions,
    WatchDropsOptions,
)
from aetherscale.actors.firewall.model.decide import GROUPS, GroupMessage
from aetherscale.actors.firewall.model.presentation import GROUP_KIND, announce, holds, is_applied, is_deleted
from aetherscale.actors.firewall.model.rules import parse_rules
from aetherscale.actors.firewall.model.state import Group
from aetherscale.actors.firewall.service import FirewallService
from aetherscale.actors.network.ports import FIREWALL, HOST_NETWORKS, HostNetworks
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.names import is_name
from aetherscale.runtime.component import Command, Component, Driver, Host, Listing, Query, World


def _create(options: CreateGroupOptions, call: Call, group_id: str, world: World) -> commands.CreateGroup:
    host: HostNetworks = world.port(HOST_NETWORKS)
    host.require()
    world.require_free(events.KIND, call.tenant, options.name, group_id)
    rules = _known(options.rules, (group_id, options.name), call, world)
    return commands.CreateGroup(group_id, GroupSpec(options.name, rules))


def _set(options: SetRulesOptions, call: Call, group_id: str, world: World) -> commands.SetRules:
    group: Group = world.find(events.KIND, call.tenant, group_id).state
    rules = _known(options.rules, (group_id, group.name), call, world)
    return commands.SetRules(group_id, rules, options.revision, options.keep_established)


def _known(given: list[str | RuleOptions], own: tuple[str, str], call: Call, world: World) -> tuple[Rule, ...]:
    """Rules in their canonical form, equal ones once, with the ids and the names of the groups that they name.

    `own` is the id and the name of the group that they are of. Raises `Refused` (bad request, not found, conflict).
    """
    known: dict[str, tuple[str, str]] = dict.fromkeys(own, own)
    rules: dict[Rule, None] = {}
    for number, rule in enumerate(parse_rules(given)):
        if rule.group is None:
            rules[rule] = None
            continue
        if rule.group not in known:
            known[rule.group] = _found(rule.group, f"rules[{number}].group", call, world)
        group_id, name = known[rule.group]
        rules[replace(rule, group_id=group_id, group=name)] = None
    return tuple(rules)


def _found(reference: str, field: str, call: Call, world: World) -> tuple[str, str]:
    """The id and the name of a group that a rule may be about. Raises `Refused` (not found, conflict)."""
    try:
        group: Group = world.find(events.KIND, call.tenant, reference).state
    except Refused as missing:
        missing.field = field
        if is_name(reference):
            missing.remedy = (Task("group", "create", reference),)
        raise
    if group.phase in ("deleting", "deleted"):
        raise Refused(Reason.CONFLICT, f"the group {group.name!r} is {group.phase}", field=field)
    return group.id, group.name


def _delete(options: GroupOptions, call: Call, group_id: str, world: World) -> commands.DeleteGroup:
    return commands.DeleteGroup(group_id, tuple(world.users_of(events.KIND, group_id)))


def _open_driver(host: Host) -> Driver[Group, GroupMessage]:
    from aetherscale.actors.firewall.driver import Groups

    return Groups(host.port(FIREWALL))


COMPONENT: Final[Component[Group, GroupMessage]] = Component(
    identity=IDENTITY,
    kind=GROUP_KIND,
    decider=GROUPS,
    holds=holds,
    announce=announce,
    listing=Listing(ListGroupsOptions, GroupOptions),
    commands={
        "create-group": Command(CreateGroupOptions, _create, is_applied, creates=True),
        "set-rules": Command(SetRulesOptions, _set, is_applied),
        "delete-group": Command(GroupOptions, _delete, is_deleted, frees=True),
    },
    open_driver=_open_driver,
    open_simulated=_open_driver,
    open_service=FirewallService,
    queries={
        "explain": Query(ExplainOptions, FirewallService.explain),
        "watch-drops": Query(WatchDropsOptions, FirewallService.watch, streams=True),
    },
    ends={
        events.GroupRequested: is_applied,
        events.RulesSet: is_applied,
        events.GroupDeleteRequested: is_deleted,
    },
    counts={"groups": lambda group: True},
)
