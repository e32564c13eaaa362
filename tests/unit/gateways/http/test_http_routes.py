"""The one table: every task has a route, every row has a handler, and a row that is missing is seen."""

from __future__ import annotations

import re

from aetherscale.components import components
from aetherscale.gateways.http.dispatch import find
from aetherscale.gateways.http.routes import request_for, table
from aetherscale.kernel.errors import Task


def test_what_nats_can_http_can() -> None:
    reached = {(row.component, row.task) for row in table() if row.task}
    reached |= {(component, task) for row in table() for component, task, _ in row.actions.values()}
    wanted = {(each.asked_under(task), task) for each in components() for task in each.tasks()}
    assert wanted == reached


def test_no_two_rows_are_one() -> None:
    names = [row.name for row in table()]
    assert len(set(names)) == len(names)
    places = [(row.method, re.sub(r"{[^}]*}", "{}", row.template)) for row in table()]
    assert len(set(places)) == len(places)


def test_every_row_says_what_it_is_for_and_finds_itself() -> None:
    for row in table():
        assert row.about.endswith("."), row.name
        found = find(row.method, row.template.replace(f"{{{row.parameter}}}", "x") if row.parameter else row.template)
        assert found.route == row
        assert found.value == ("x" if row.parameter else "")


def test_a_word_of_the_table_goes_before_a_name() -> None:
    build, show = find("POST", "/v1/images/build").route, find("GET", "/v1/images/build").route
    assert build is not None
    assert show is not None
    assert (build.name, show.name) == ("build-image", "image-info")


def test_a_remedy_is_a_request_where_http_has_one() -> None:
    assert request_for(Task("vm", "list")) == {"method": "GET", "path": "/v1/vms"}
    assert request_for(Task("network", "create", "lab")) == {
        "method": "POST",
        "path": "/v1/networks",
        "body": {"name": "lab"},
    }
    assert request_for(Task("vm", "stop", "web", {"kill": True})) == {
        "method": "POST",
        "path": "/v1/vms/web/actions",
        "body": {"action": "stop", "kill": True},
    }
    assert request_for(Task("doctor")) is None
    assert request_for(Task("why", "vm", "web")) is None


def test_the_events_that_requests_begin_with_have_an_end_in_every_component() -> None:
    """`Component.ends` is complete: by the words of the events, which say whose wish they are."""
    for component in components():
        asked = {event for event in component.kind.event_types if event.__name__.endswith("Requested")}
        assert asked - set(component.ends) == set(), component.name
