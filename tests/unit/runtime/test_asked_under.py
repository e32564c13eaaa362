"""Tasks that are asked for under the name of another component: what is derived of it."""

from __future__ import annotations

from typing import Final

from aetherscale.actors.compute.component import COMPONENT as COMPUTE
from aetherscale.actors.firewall.component import COMPONENT as FIREWALL
from aetherscale.docs import tasks_of
from aetherscale.runtime.asked import tasks_under

OF_VMS: Final = ["attach-group", "detach-group", "add-forward", "remove-forward", "list-forwards"]


def test_they_come_after_those_of_the_component_itself() -> None:
    found = tasks_under("firewall", (COMPUTE, FIREWALL))
    own = ["create-group", "set-rules", "delete-group", "list-groups", "group-info", "explain", "watch-drops"]
    assert list(found) == [*own, *OF_VMS]
    assert {task: found[task].name for task in OF_VMS} == dict.fromkeys(OF_VMS, "compute")


def test_their_own_component_has_the_rest() -> None:
    assert set(tasks_under("compute", (COMPUTE, FIREWALL))) == set(COMPUTE.tasks()) - set(OF_VMS)


def test_the_page_of_subjects_has_them_where_they_are_asked_for() -> None:
    page = "\n".join(tasks_of("firewall", (COMPUTE, FIREWALL)))
    assert "`aether.v1.default.cmd.firewall.attach-group`; changes something; takes an idempotency key." in page
    assert "`aether.v1.default.cmd.firewall.list-forwards`; changes nothing." in page
    assert "attach-group" not in "\n".join(tasks_of("compute", (COMPUTE, FIREWALL)))
