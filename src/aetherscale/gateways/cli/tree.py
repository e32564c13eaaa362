"""The top of the command line: every word, what it is for, and where it is found. Loads nothing but itself."""

from __future__ import annotations

from aetherscale.gateways.cli.grammar import Command, Entry, Group


def _serve() -> Command:
    from aetherscale.gateways.cli.serve import SERVE

    return SERVE


def _vm() -> Group:
    from aetherscale.gateways.cli.vm import VM

    return VM


def _image() -> Group:
    from aetherscale.gateways.cli.image import IMAGE

    return IMAGE


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
    from aetherscale.gateways.cli.later import LATER

    return LATER[name]


ENTRIES: tuple[Entry, ...] = (
    Entry("serve", "run a node in the foreground; also what happens without any command", _serve),
    Entry("vm", "virtual machines: create, list, start, stop, console …", _vm),
    Entry("image", "what they boot from: import, build, list …", _image),
    Entry("events", "what has happened, event by event", _events),
    Entry("replay", "the state as it was, from the log alone", _replay),
    Entry("diff", "what changed between two moments", _diff),
    Entry("why", "the chain of causes that led to the present state", _why),
    Entry("log", "the log itself: verify, witness, export, import, info", _log),
    Entry("node", "the nodes that can be heard", _node),
    Entry("doctor", "check all that a node needs, and say what mends it", _doctor),
    Entry("host", "make this host run a node as a service", _host),
    Entry("demo", "from nothing to a ready VM and back, in a temporary directory", _demo),
    Entry("nats-context", "let the `nats` program know the node's server", _nats_context),
    Entry("completion", "completion for bash, zsh or fish", _completion),
    Entry("network", "not in this version", lambda: _later("network")),
    Entry("vpn", "not in this version", lambda: _later("vpn")),
    Entry("firewall", "not in this version", lambda: _later("firewall")),
)
