"""`/metrics`, `/healthz` and `/readyz`, read as those read them who watch nodes."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as families

from aetherscale.gateways.http import metrics
from aetherscale.kernel.measures import counter, gauge
from aetherscale.runtime import measures
from tests.support.http_node import HttpNode, samples, scrape, vm
from tests.support.node import ROOT


class TestText:
    def test_numbers_are_written_in_full_and_labels_are_escaped(self) -> None:
        hostile = 'a "b"\\\nc'
        text = metrics.text(
            [
                counter("bytes_total", "Bytes.", 2**53 - 1),
                gauge("share", "A part\nof it \\ all.", [({"name": hostile}, 0.1 + 0.2)]),
                gauge("none", "Nothing.", []),
            ]
        ).decode()
        assert text.splitlines()[:3] == [
            "# HELP aetherscale_bytes_total Bytes.",
            "# TYPE aetherscale_bytes_total counter",
            "aetherscale_bytes_total 9007199254740991",
        ]
        assert samples(text)["aetherscale_share", (("name", hostile),)] == 0.1 + 0.2
        (of_share,) = [family for family in families(text) if family.name == "aetherscale_share"]
        assert of_share.documentation == "A part\nof it \\ all."

    def test_what_only_grows_says_so_in_its_name(self) -> None:
        with pytest.raises(AssertionError, match="_total"):
            counter("bytes", "Bytes.", 1)


class TestScrapes:
    async def test_a_scrape_has_the_node_its_log_its_objects_and_its_requests(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        await node.image()
        web = await vm(client)
        await client.get("/v1/vms/none")
        found = await scrape(client)
        of_vm = ("vm", web["id"])
        assert found["aetherscale_log_position", ()] == len(await node.memory.events())
        assert found["aetherscale_log_events_total", (("type", "VmReady"),)] == 1
        assert found["aetherscale_objects", (("kind", "vm"), ("phase", "ready"))] == 1
        assert found["aetherscale_objects", (("kind", "image"), ("phase", "ready"))] == 1
        info = (("image", "tiny"), ("name", "web"), ("tenant", "default"), of_vm)
        assert found["aetherscale_vm_info", info] == 1
        assert found["aetherscale_vm_ready", (of_vm,)] == 1
        assert found["aetherscale_vm_memory_limit_bytes", (of_vm,)] == int(web["memory-mib"]) << 20
        assert found["aetherscale_vm_disk_written_bytes_total", (of_vm,)] == 0
        info_task = (("component", "compute"), ("outcome", "error"), ("task", "vm-info"))
        assert found["aetherscale_requests_total", info_task] == 1
        created = (("component", "compute"), ("outcome", "ok"), ("task", "create-vm"))
        assert found["aetherscale_requests_total", created] == 1
        assert found["aetherscale_requests_open", ()] == 0
        assert found["aetherscale_mailboxes_busy", (("kind", "vm"),)] == 0
        assert found["aetherscale_bus_connected", ()] == 1
        assert found["aetherscale_process_memory_resident_bytes", ()] > 1 << 20

    async def test_a_vm_that_is_stopped_has_no_figures_of_a_process_and_a_deleted_one_has_none(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        await node.image()
        web = await vm(client)
        of_vm = (("vm", web["id"]),)
        assert ("aetherscale_vm_cpu_seconds_total", of_vm) in await scrape(client)
        await client.post("/v1/vms/web/actions?wait=60", json={"action": "stop"})
        stopped = await scrape(client)
        assert stopped["aetherscale_vm_ready", of_vm] == 0
        assert ("aetherscale_vm_cpu_seconds_total", of_vm) not in stopped
        await client.delete("/v1/vms/web?wait=60")
        assert not [name for name, labels in await scrape(client) if of_vm[0] in labels]

    async def test_the_counters_of_ports_are_those_of_their_guests(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        await node.image()
        await client.post("/v1/networks?wait=30", json={"name": "lan"})
        made = await client.post("/v1/vms?wait=ready", json={"image": "tiny", "name": "web", "virtual-network": "lan"})
        (port,) = made.json()["ports"]
        found = await scrape(client)
        labels = (("network", port["network-id"]), ("vm", made.json()["id"]))
        assert found["aetherscale_vm_network_receive_bytes_total", labels] == 0
        assert found["aetherscale_vm_network_transmit_packets_total", labels] == 0

    async def test_a_component_that_hangs_costs_its_own_figures_alone(
        self, node: HttpNode, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def hang() -> None:
            await asyncio.get_running_loop().create_future()

        assert node.memory.node is not None
        monkeypatch.setattr(measures, "PATIENCE_S", 0.05)
        monkeypatch.setattr(node.memory.node.actors["vm"].driver, "figures", hang)
        found = await scrape(client)
        assert ("aetherscale_log_position", ()) in found
        assert not [name for name, _ in found if name.startswith("aetherscale_vm_")]

    async def test_each_figure_has_one_description_and_every_name_of_the_dashboard_is_one(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        text = (await client.get("/metrics")).text
        described = [line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(described) == len(set(described)) > 25
        dashboard = json.loads((ROOT / "docs/grafana.json").read_text())
        asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
        words = {word for each in asked for word in metrics.NAME.findall(each)}
        assert words
        assert words <= set(described), words - set(described)
        page = (ROOT / "docs/metrics.md").read_text()
        assert not [name for name in described if f"`{name}`" not in page]
        assert set(metrics.NAME.findall(page)) <= set(described)


class TestHealth:
    async def test_it_is_for_anyone_who_reaches_the_address_and_nothing_else_is(self, node: HttpNode) -> None:
        async with node.tcp(Authorization="") as stranger:
            assert (await stranger.get("/healthz")).text == "ok\n"
            assert (await stranger.get("/readyz")).text == "ready\n"
            for path in ("/metrics", "/healthz?x", "/healthz/../v1/vms", "/v1/nodes", "/healthz/"):
                assert (await stranger.get(path)).status_code == 401, path

    async def test_a_node_whose_disk_is_full_is_not_ready_until_there_is_room(
        self, node: HttpNode, client: httpx.AsyncClient
    ) -> None:
        node.memory.world.full = True
        refused = await client.post("/v1/networks?wait=30", json={"name": "lan"})
        assert refused.status_code == 507
        unready = await client.get("/readyz")
        assert unready.status_code == 503
        assert unready.json()["detail"] == "append: no room for a log that was set to be full"
        assert (await client.get("/healthz")).status_code == 200
        node.memory.world.full = False
        assert (await client.post("/v1/networks?wait=30", json={"name": "lan"})).status_code == 201
        assert (await client.get("/readyz")).status_code == 200
