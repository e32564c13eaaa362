"""The top of the command line: every word, what it is for, and where it is found. Loads nothing but itself."""

from __future__ import annotations

from functools import partial
from importlib import import_module

from aetherscale.bus.refusals import words_of
from aetherscale.components import LATER, any_object, identities
from aetherscale.gateways.cli.grammar import Command, Entry, Group
from aetherscale.kernel.identity import Identity


def _serve() -> Command:
    from aetherscale.gateways.cli.serve import SERVE

    return SERVE


def _of_component(identity: Identity) -> Entry:
    """The group of a component: `VM` in `vm.py`."""
    word, *_ = words_of(identity.kind).split()

    def load() -> Group:
        group: Group = getattr(import_module(f"aetherscale.gateways.cli.{word}"), word.upper())
        return group

    return Entry(word, identity.help, load)


def _events() -> Group:
    from aetherscale.gateways.cli.events import EVENTS

    return EVENTS


def _replay() -> Command:
    from aetherscale.gateways.cli.past import REPLAY

    return REPLAY


def _diff() -> Command:
    from aetherscale.gateways.cli.past import DIFF

    return DIFF


def _why() -> Command:
    from aetherscale.gateways.cli.past import WHY

    return WHY


def _log() -> Group:
    from aetherscale.gateways.cli.log import LOG

    return LOG


def _node() -> Group:
    from aetherscale.gateways.cli.node import NODE

    return NODE


def _doctor() -> Command:
    from aetherscale.gateways.cli.host import DOCTOR

    return DOCTOR


def _host() -> Group:
    from aetherscale.gateways.cli.host import HOST

    return HOST


def _demo() -> Command:
    from aetherscale.gateways.cli.host import DEMO

    return DEMO


def _nats_context() -> Command:
    from aetherscale.gateways.cli.host import NATS_CONTEXT

    return NATS_CONTEXT


def _completion() -> Group:
    from aetherscale.gateways.cli.completion import COMPLETION

    return COMPLETION


def _later(name: str) -> Command:
    from aetherscale.gateways.cli.later import COMMANDS

    return COMMANDS[name]


ENTRIES: tuple[Entry, ...] = (
    Entry("serve", "run a node in the foreground; the default if no command is given", _serve),
    *(_of_component(each) for each in identities()),
    Entry("events", "show the events in the log, and follow new ones", _events),
    Entry("replay", "show the state at any moment, from the log alone", _replay),
    Entry("diff", "show what changed between two moments", _diff),
    Entry("why", f"explain why {any_object()} is in its present state", _why),
    Entry("log", "manage the event log: verify, export, import, archive …", _log),
    Entry("node", "list the nodes that answer", _node),
    Entry("doctor", "check what a node needs, and say how to fix it", _doctor),
    Entry("host", "install a node on this host as a service, or remove it", _host),
    Entry("demo", "create, show and delete VMs in a temporary directory", _demo),
    Entry("nats-context", "configure the `nats` program for the node's server", _nats_context),
    Entry("completion", "print a completion script for bash, zsh or fish", _completion),
    *(Entry(name, "not in this version", partial(_later, name)) for name in LATER),
)
