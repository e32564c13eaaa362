"""The OpenAPI document: it has the whole table, holds together, and says what the node enforces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from aetherscale.gateways.http.openapi import document
from aetherscale.gateways.http.routes import table


def told() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(document("0.1.0"))
    return found


def within(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from within(each)
    elif isinstance(value, list):
        for each in value:
            yield from within(each)


def test_it_has_every_row_of_the_table_and_no_other() -> None:
    rows = {(row.template, row.method.lower(), row.name) for row in table()}
    assert rows == {
        (path, method, operation["operationId"])
        for path, methods in told()["paths"].items()
        for method, operation in methods.items()
    }


def test_every_reference_leads_somewhere() -> None:
    document = told()
    references = [part["$ref"] for part in within(document) if "$ref" in part]
    assert references
    for reference in references:
        found: Any = document
        for word in reference.removeprefix("#/").split("/"):
            found = found[word]


def test_its_patterns_are_those_of_json_schema_and_mean_the_same() -> None:
    patterns = [part["pattern"] for part in within(told()) if isinstance(part.get("pattern"), str)]
    assert patterns
    for pattern in patterns:
        assert r"\A" not in pattern
        assert r"\Z" not in pattern
        re.compile(pattern)


def test_every_path_names_its_parameter() -> None:
    for path, methods in told()["paths"].items():
        wanted = re.findall(r"{([^}]*)}", path)
        for operation in methods.values():
            assert [each["name"] for each in operation["parameters"] if each["in"] == "path"] == wanted
            assert "default" in operation["responses"]


def test_what_is_unknown_is_refused_in_it_too() -> None:
    schemas = told()["components"]["schemas"]
    assert schemas["CreateVmOptions"]["additionalProperties"] is False
    assert "image" in schemas["CreateVmOptions"]["required"]
    assert "description" in schemas["CreateVmOptions"]
    assert set(schemas["VmView"]["properties"]) >= {"id", "name", "memory-mib", "requested-by"}


def test_it_is_one_of_openapi_3_1() -> None:
    document = told()
    assert document["openapi"] == "3.1.0"
    assert {"title", "version"} <= document["info"].keys()
    ids = [each["operationId"] for methods in document["paths"].values() for each in methods.values()]
    assert len(ids) == len(set(ids))
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation["parameters"]:
                assert {"name", "in", "schema"} <= parameter.keys()
            for response in operation["responses"].values():
                assert "description" in response
    assert msgspec.json.decode(document_bytes := msgspec.json.encode(document)) == document, document_bytes[:0]
