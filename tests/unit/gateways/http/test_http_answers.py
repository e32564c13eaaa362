"""What else is answered: requests that are only tried, questions to guests, and problems with their remedies."""

from __future__ import annotations

import httpx
import pytest

from tests.support.http_node import HttpNode, until, vm


class TestDryRuns:
    async def test_it_is_decided_and_nothing_is_recorded(self, node: HttpNode, client: httpx.AsyncClient) -> None:
        await node.image()
        before = len(await node.memory.events())
        tried = await client.post("/v1/vms?dry-run=1&wait=30", json={"image": "tiny", "name": "web"})
        assert tried.status_code == 200
        assert tried.json()["dry-run"] is True
        assert [each["type"] for each in tried.json()["events"]] == ["VmRequested"]
        assert len(await node.memory.events()) == before
        assert (await client.get("/v1/vms")).json()["count"] == 0

    async def test_it_is_refused_as_it_would_be(self, node: HttpNode, client: httpx.AsyncClient) -> None:
        await node.image()
        await vm(client)
        before = len(await node.memory.events())
        body = {"image": "tiny", "name": "web"}
        refused = [await client.post(path, json=body) for path in ("/v1/vms?dry-run=1", "/v1/vms")]
        assert [each.status_code for each in refused] == [409, 409]
        assert refused[0].json() == refused[1].json()
        assert len(await node.memory.events()) == before

    async def test_its_key_is_free_afterwards(self, node: HttpNode, client: httpx.AsyncClient) -> None:
        headers = {"Idempotency-Key": "k"}
        assert (await client.post("/v1/networks?dry-run=1", json={"name": "a"}, headers=headers)).status_code == 200
        assert (await client.post("/v1/networks?wait=30", json={"name": "b"}, headers=headers)).status_code == 201


class TestQuestions:
    async def test_the_output_of_a_guest_comes_line_by_line_as_on_nats(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        await node.image()
        await vm(client)
        answer = await client.get("/v1/vms/web/logs")
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert answer.text.splitlines()[-1].startswith('{"type":"result"')

    async def test_what_is_refused_at_once_is_a_problem_and_no_stream(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/v1/vms/none/logs")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")

    async def test_a_reader_that_leaves_makes_room(self, node: HttpNode, client: httpx.AsyncClient) -> None:
        await node.image()
        await vm(client)
        async with client.stream("GET", "/v1/vms/web/logs?follow=true") as answer:
            assert answer.status_code == 200
            assert sum(node.admission._open.values()) == 1
        await until(lambda: not node.admission._open)

    async def test_forwards_groups_nodes_and_explanations(self, node: HttpNode, client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/firewall/forwards")).json() == {"items": [], "count": 0}
        explained = await client.get(
            "/v1/firewall/explain", params={"from": "192.0.2.7", "to": "host", "port": "tcp/80"}
        )
        assert explained.status_code in (200, 400), explained.text
        assert (await client.get("/v1/nodes")).json()["items"][0]["node"] == "host1"
        assert (await client.get("/v1/nodes/host1")).json()["version"]
        assert (await client.get("/v1/nodes/other")).status_code == 404

    async def test_requests_over_http_are_counted_and_bounded_with_those_of_nats(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        await client.get("/v1/vms")
        await client.get("/v1/vms/none")
        assert node.counted == [("compute", "list-vms", ""), ("compute", "vm-info", "404 not-found")]
        node.admission._max_open_streams = 0
        full = await client.get("/v1/vms")
        assert (full.status_code, full.headers["retry-after"], full.json()["retryable"]) == (503, "1", True)


class TestProblems:
    async def test_a_refusal_has_its_remedy_as_data_and_the_request_that_does_it(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        await node.image()
        await vm(client)
        answer = await client.post("/v1/vms", json={"image": "tiny", "name": "web"})
        problem = answer.json()
        assert (answer.status_code, problem["status"], problem["type"]) == (409, 409, "/problems/conflict")
        assert problem["field"] == "name"
        [task] = [part for part in problem["remedy"] if isinstance(part, dict)]
        assert task["request"] == {"method": "DELETE", "path": "/v1/vms/web"}
        assert problem["hint"].endswith("aetherscale vm delete web")
        page = await client.get(problem["type"])
        assert page.text.startswith("409 conflict: ")
        done = await client.request(task["request"]["method"], task["request"]["path"], params={"wait": "30"})
        assert done.status_code == 200

    @pytest.mark.our_mistake
    async def test_a_mistake_of_ours_is_500_and_told_to_nobody(
        self,
        node: HttpNode,
        client: httpx.AsyncClient,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail() -> int:
            raise RuntimeError("deliberate secret")

        # `head` is a port of the node: a failure behind it is the only 500 that a test can have.
        monkeypatch.setattr(node.memory.log, "durable_head", fail)
        answer = await client.get("/v1/vms")
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert "deliberate secret" in caplog.text
