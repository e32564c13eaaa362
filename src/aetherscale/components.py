"""All components of this program. The name of a folder in here is all the wiring that it needs outside of it.

The folder `actors/<name>` has `IDENTITY` in its `__init__.py`, which is all that most commands need to load, and
`COMPONENT` in its `component.py`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aetherscale.kernel.identity import Identity
    from aetherscale.kernel.registry import Kind
    from aetherscale.runtime.component import Component

COMPONENTS: Final = ("network", "firewall", "compute", "images")
"""In the order in which a node starts them, and the docs describe them. Networks and groups are known before the
ports of VMs in them."""
LATER: Final = ("vpn",)
"""The kinds of a later version: their words are known, so that they are refused as such and not mistaken."""


@cache
def identities() -> tuple[Identity, ...]:
    """The names of the components."""
    return tuple(import_module(f"aetherscale.actors.{name}").IDENTITY for name in COMPONENTS)


@cache
def components() -> tuple[Component[Any, Any], ...]:
    """The components themselves."""
    return tuple(import_module(f"aetherscale.actors.{name}.component").COMPONENT for name in COMPONENTS)


def any_object() -> str:
    """What an object can be, in a sentence: `a network, a VM or an image`."""
    *others, last = (each.one for each in identities())
    return f"{', '.join(others)} or {last}"


def kinds() -> tuple[Kind[Any], ...]:
    """All kinds of aggregates that a log of this version can hold."""
    return tuple(component.kind for component in components())
