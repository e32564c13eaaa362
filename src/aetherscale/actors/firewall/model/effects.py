"""What the firewall component may ask of the host, and every answer. Ensure-effects, as in compute. Pure data."""

from __future__ import annotations

from msgspec import Struct

from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.kernel.failures import EffectFailed


class ApplyGroup(Struct, frozen=True):
    """Ensure that the kernel has these rules for the group, and no other."""

    key: str
    group_id: str
    revision: int
    rules: tuple[Rule, ...]
    keep_established: bool = False
    deadline_s: float = 30.0
    not_before_us: int = 0


class RemoveGroup(Struct, frozen=True):
    """Ensure that nothing of the group is left in the kernel."""

    key: str
    group_id: str
    deadline_s: float = 30.0
    not_before_us: int = 0


GroupEffect = ApplyGroup | RemoveGroup


class RulesApplied(Struct, frozen=True):
    """The kernel has this revision of the rules."""

    key: str
    revision: int


class GroupRemoved(Struct, frozen=True):
    """Nothing of the group is left."""

    key: str


GroupOutcome = RulesApplied | GroupRemoved | EffectFailed
