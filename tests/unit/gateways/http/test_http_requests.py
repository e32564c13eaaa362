"""What routes do: the same tasks as on NATS, with what HTTP adds to them."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from aetherscale.actors.compute.simulated.host import Behaviour
from aetherscale.gateways.http import commands
from tests.support.http_node import HttpNode, vm


class TestObjects:
    async def test_one_is_made_shown_listed_changed_and_deleted(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        await node.image()
        made = await client.post("/v1/vms", params={"wait": "30"}, json={"image": "tiny", "name": "web"})
        assert (made.status_code, made.json()["phase"]) == (201, "ready")
        view = made.json()
        assert made.headers["location"] == f"/v1/vms/{view['id']}"
        assert (await client.get(made.headers["location"])).json() == view
        assert (await client.get("/v1/vms/web")).json() == view
        assert (await client.get("/v1/vms")).json() == {"items": [view], "count": 1, "next": None}
        stopped = await client.post("/v1/vms/web/actions", params={"wait": "30"}, json={"action": "stop", "kill": True})
        assert (stopped.status_code, stopped.json()["phase"]) == (200, "stopped")
        started = await client.patch("/v1/vms/web", params={"wait": "30"}, json={"status": "started"})
        assert (started.status_code, started.json()["phase"]) == (200, "ready")
        deleted = await client.delete("/v1/vms/web", params={"wait": "30", "kill": "true"})
        assert (deleted.status_code, deleted.json()["phase"]) == (200, "deleted")
        assert (await client.get("/v1/vms/web")).status_code == 404
        assert (await client.get(f"/v1/vms/{view['id']}")).json()["phase"] == "deleted"
        everyone = await client.get("/v1/vms", params={"all": "true"})
        assert [each["id"] for each in everyone.json()["items"]] == [view["id"]]

    async def test_what_is_seen_is_what_nats_tells(self, node: HttpNode, client: httpx.AsyncClient) -> None:
        await node.image()
        await vm(client)
        on_nats = await node.memory.final("compute", "vm-info", {"vm-id": "web"})
        shown = (await client.get("/v1/vms/web")).json()
        assert shown["id"] == on_nats["vm"].id
        assert shown["revision"] == on_nats["vm"].revision
        info = (await client.get("/v1/vms/web/info")).json()
        assert info["vm"] == shown
        assert "host" in info

    async def test_the_actor_of_every_event_is_the_person_who_asked(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        assert (await client.post("/v1/networks", params={"wait": "30"}, json={"name": "lab"})).status_code == 201
        async with node.tcp() as over_tcp:
            assert (await over_tcp.delete("/v1/networks/lab", params={"wait": "30"})).status_code == 200
        asked = [each.actor for each in await node.memory.events() if type(each.event).__name__.endswith("Requested")]
        assert len(asked) == 2
        assert all(actor.startswith("unix:") for actor in asked), asked

    async def test_pages_have_each_object_once_whatever_comes_between(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        for number in range(7):
            await client.post("/v1/firewall/groups", params={"wait": "30"}, json={"name": f"g{number}"})
        seen: list[str] = []
        cursor = None
        while True:
            page = await client.get("/v1/firewall/groups", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))
            assert len(page.json()["items"]) <= 3
            seen += [each["name"] for each in page.json()["items"]]
            cursor = page.json()["next"]
            if cursor is None:
                break
            # One that goes, first the one that the cursor names, and one that comes before that place.
            gone = seen[-1] if len(seen) == 3 else seen[0]
            await client.delete(f"/v1/firewall/groups/{gone}", params={"wait": "30"})
            await client.post("/v1/firewall/groups", params={"wait": "30"}, json={"name": f"a{len(seen)}"})
        assert seen == [f"g{number}" for number in range(7)]

    @pytest.mark.parametrize("cursor", ["x", "%00", "W10", "é", "bnVsbA", "WyJhIl0"])
    async def test_a_cursor_that_is_none_is_refused(self, client: httpx.AsyncClient, cursor: str) -> None:
        answer = await client.get(f"/v1/vms?cursor={cursor}")
        assert (answer.status_code, answer.json()["field"] in ("cursor", "query")) == (400, True)


class TestConditions:
    async def test_an_unchanged_object_is_not_sent_again(self, node: HttpNode, client: httpx.AsyncClient) -> None:
        await client.post("/v1/networks", params={"wait": "30"}, json={"name": "lab"})
        tag = ""
        for path in ("/v1/networks/lab", "/v1/networks"):
            tag = (await client.get(path)).headers["etag"]
            again = await client.get(path, headers={"If-None-Match": f'"x", {tag}'})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        await client.delete("/v1/networks/lab", params={"wait": "30"})
        assert (await client.get("/v1/networks", headers={"If-None-Match": tag})).status_code == 200

    async def test_a_change_of_what_has_changed_since_is_refused_and_does_nothing(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        await node.image()
        await vm(client)
        tag = (await client.get("/v1/vms/web")).headers["etag"]
        stopped = await client.post("/v1/vms/web/actions?wait=30", json={"action": "stop"}, headers={"If-Match": tag})
        assert stopped.status_code == 200
        before = len(await node.memory.events())
        refused = await client.delete("/v1/vms/web", headers={"If-Match": tag})
        assert (refused.status_code, refused.json()["type"]) == (412, "/problems/precondition-failed")
        assert len(await node.memory.events()) == before
        present = stopped.headers["etag"]
        assert present == (await client.get("/v1/vms/web")).headers["etag"]
        assert (await client.delete("/v1/vms/web?wait=30", headers={"If-Match": f'"x", {present}'})).status_code == 200

    async def test_of_two_conditional_changes_at_once_one_is_done(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        await client.post("/v1/firewall/groups", params={"wait": "30"}, json={"name": "g"})
        tag = (await client.get("/v1/firewall/groups/g")).headers["etag"]
        ask = [
            client.post(
                "/v1/firewall/groups/g/actions?wait=30",
                json={"action": "set-rules", "rules": [f"in:tcp:{port}"]},
                headers={"If-Match": tag},
            )
            for port in (80, 81, 82)
        ]
        assert sorted(each.status_code for each in await asyncio.gather(*ask)) == [200, 412, 412]

    async def test_an_object_of_the_same_name_is_another_one(self, client: httpx.AsyncClient) -> None:
        tags = []
        for _ in range(2):
            await client.post("/v1/networks", params={"wait": "30"}, json={"name": "lab"})
            tags.append((await client.get("/v1/networks/lab")).headers["etag"])
            await client.delete("/v1/networks/lab", params={"wait": "30"})
        assert tags[0] != tags[1]

    async def test_a_repeat_gets_its_outcome_though_its_condition_holds_no_more(
        self, client: httpx.AsyncClient
    ) -> None:
        await client.post("/v1/firewall/groups", params={"wait": "30"}, json={"name": "g"})
        tag = (await client.get("/v1/firewall/groups/g")).headers["etag"]
        headers = {"If-Match": tag, "Idempotency-Key": "once"}
        body = {"action": "set-rules", "rules": ["in:tcp:80"]}
        first = await client.post("/v1/firewall/groups/g/actions?wait=30", json=body, headers=headers)
        again = await client.post("/v1/firewall/groups/g/actions?wait=30", json=body, headers=headers)
        assert (first.status_code, again.status_code) == (200, 200)
        assert first.json()["revision"] == again.json()["revision"]


class TestOperations:
    async def test_what_is_accepted_is_told_with_its_operation_which_answers_after_a_restart(
        self, node: HttpNode
    ) -> None:
        await node.image()
        async with node.unix() as client:
            made = await client.post(
                "/v1/vms", json={"image": "tiny", "name": "web"}, headers={"Idempotency-Key": "a key/1"}
            )
            assert made.status_code == 202
            assert made.headers["location"] == "/v1/operations/a%20key%2F1"
            told = made.json()
            assert (told["status"], told["kind"]) == ("running", "vm")
            await node.memory.until("VmReady")
            done = (await client.get(made.headers["location"])).json()
            assert (done["status"], done["object-id"]) == ("done", told["object-id"])
            assert done["actor"].startswith("unix:")
        await node.restart()
        async with node.unix() as client:
            assert (await client.get(made.headers["location"])).json() == done

    async def test_its_end_stays_what_it_was_whatever_came_later(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        await node.image()
        keys = {}
        await client.post("/v1/vms?wait=30", json={"image": "tiny", "name": "web"}, headers={"Idempotency-Key": "c"})
        for word in ("stop", "start", "restart"):
            key = keys[word] = f"k-{word}"
            done = await client.post(
                "/v1/vms/web/actions?wait=30", json={"action": word}, headers={"Idempotency-Key": key}
            )
            assert done.status_code == 200
        await client.delete("/v1/vms/web?wait=30", headers={"Idempotency-Key": "d"})
        for key in ("c", *keys.values(), "d"):
            operation = (await client.get(f"/v1/operations/{key}")).json()
            assert operation["status"] == "done", operation
            assert operation["ended"] >= operation["time"]

    async def test_one_that_was_undone_before_its_end_has_failed_and_says_why(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        await node.image()
        node.memory.host.behaviour = lambda vm_id: Behaviour(ready_after_s=None)
        made = await client.post("/v1/vms", json={"image": "tiny", "name": "web"}, headers={"Idempotency-Key": "c"})
        assert made.status_code == 202
        await node.memory.until("VmBooted")
        assert (await client.get("/v1/operations/c")).json()["status"] == "running"
        assert (await client.delete("/v1/vms/web?wait=30&kill=1")).status_code == 200
        operation = (await client.get("/v1/operations/c")).json()
        assert operation["status"] == "failed"
        assert operation["problem"]["type"] == "/problems/conflict"
        assert "deleted before it was ready" in operation["problem"]["detail"]

    async def test_one_whose_work_failed_says_so_as_a_caller_who_waits_is_told(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        node.memory.images.failures.append(("the disk is on fire", False))
        failed = await client.post(
            "/v1/images/build?wait=30", json={"recipe": "tiny", "name": "x"}, headers={"Idempotency-Key": "f"}
        )
        assert failed.status_code == 500
        operation = (await client.get("/v1/operations/f")).json()
        assert operation["status"] == "failed"
        assert operation["problem"]["detail"] == failed.json()["detail"]
        assert "the disk is on fire" in failed.json()["detail"]

    async def test_one_that_found_all_as_it_was_to_be_is_done(self, node: HttpNode, client: httpx.AsyncClient) -> None:
        await node.image()
        await vm(client)
        same = await client.post(
            "/v1/vms/web/actions?wait=30", json={"action": "start"}, headers={"Idempotency-Key": "nothing"}
        )
        assert same.status_code == 200
        assert (await client.get("/v1/operations/nothing")).json()["status"] == "done"

    async def test_what_was_refused_or_never_asked_is_no_operation(self, client: httpx.AsyncClient) -> None:
        refused = await client.post("/v1/vms", json={"image": "none"}, headers={"Idempotency-Key": "r"})
        assert refused.status_code == 404
        for key in ("r", "never"):
            answer = await client.get(f"/v1/operations/{key}")
            assert (answer.status_code, answer.json()["field"]) == (404, "operation")

    async def test_a_wait_that_runs_out_is_told_as_accepted(self, node: HttpNode, client: httpx.AsyncClient) -> None:
        await node.image()
        node.memory.host.behaviour = lambda vm_id: Behaviour(ready_after_s=None)
        made = await client.post("/v1/vms?wait=1", json={"image": "tiny", "name": "web"})
        assert (made.status_code, made.json()["status"]) == (202, "running")
        assert made.headers["location"] == made.json()["href"]
        await node.memory.until("VmBooted")
        assert (await client.get("/v1/vms/web")).json()["phase"] == "running"

    async def test_a_wait_for_ready_has_its_time(
        self, node: HttpNode, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await node.image()
        node.memory.host.behaviour = lambda vm_id: Behaviour(ready_after_s=None)
        monkeypatch.setattr(commands, "READY_S", 1)
        made = await client.post("/v1/vms?wait=ready", json={"image": "tiny", "name": "web"})
        assert (made.status_code, made.json()["status"]) == (202, "running")


class TestKeys:
    async def test_a_repeat_has_no_second_effect(self, node: HttpNode, client: httpx.AsyncClient) -> None:
        await node.image()
        body, headers = (
            b'{"image": "tiny", "name": "web"}',
            {"Idempotency-Key": "k", "Content-Type": "application/json"},
        )
        answers = await asyncio.gather(
            *(client.post("/v1/vms?wait=30", content=body, headers=headers) for _ in range(4))
        )
        assert {each.status_code for each in answers} == {201}
        assert len({each.json()["id"] for each in answers}) == 1
        assert (await node.memory.types()).count("VmRequested") == 1

    async def test_a_key_is_the_same_on_nats(self, node: HttpNode, client: httpx.AsyncClient) -> None:
        await node.image()
        made = await client.post(
            "/v1/vms?wait=30", content=b'{"image":"tiny","name":"web"}',
            headers={"Idempotency-Key": "k", "Content-Type": "application/json"},
        )  # fmt: skip
        again = await node.memory.final("compute", "create-vm", {"image": "tiny", "name": "web"}, key="k")
        assert (again["type"], again["vm-id"]) == ("result", made.json()["id"])

    async def test_a_key_of_another_request_is_refused_by_its_name_here(self, client: httpx.AsyncClient) -> None:
        headers = {"Idempotency-Key": "k"}
        assert (await client.post("/v1/networks?wait=30", json={"name": "a"}, headers=headers)).status_code == 201
        answer = await client.post("/v1/networks?wait=30", json={"name": "b"}, headers=headers)
        assert (answer.status_code, answer.json()["field"]) == (409, "Idempotency-Key")

    @pytest.mark.parametrize("key", ["", "x" * 129, "a\tb"])
    async def test_a_key_that_is_none_is_refused(self, client: httpx.AsyncClient, key: str) -> None:
        answer = await client.post("/v1/networks", json={"name": "a"}, headers={"Idempotency-Key": key})
        assert (answer.status_code, answer.json()["field"]) == (400, "Idempotency-Key")
