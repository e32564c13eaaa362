"""How objects are shown: in tables, one by one, and on a terminal of any width."""

from __future__ import annotations

from typing import Any

import pytest
from rich.cells import cell_len

from aetherscale.actors.network.model.chains import Drop
from aetherscale.debugger.diff import Change, Diff, FieldChange
from aetherscale.gateways.cli.moments import local
from aetherscale.gateways.cli.output import Output
from aetherscale.gateways.cli.past import show_diff
from aetherscale.gateways.cli.views import DROPPED, show_table, show_to_human, show_vm_to_human, size
from aetherscale.kernel.times import from_rfc3339

NOW_US = from_rfc3339("2026-01-31T12:03:30Z")


def port(network: str, *addresses: str) -> dict[str, Any]:
    """A port of a VM, as a table shows it."""
    found = [{"ip": each, "from": "lease"} for each in addresses]
    return {"network": network, "mac": "02:00:00:00:00:01", "tap": f"aep{network}", "addresses": found, "allowed": []}


def network(name: str, kind: str, ipv4: str | None, ipv6: str | None, bridge: str | None = None) -> dict[str, Any]:
    """What a table of networks shows of one."""
    return {
        "name": name, "phase": "ready", "kind": kind, "ipv4": ipv4, "ipv6": ipv6, "bridge": bridge,
        "device": bridge or "aeb0123456789ab", "node": "host1", "since": "2026-01-31T12:00:00.000000Z",
        "id": "0123456789abcdef",
    }  # fmt: skip


def vm(name: str, image: str, *addresses: str) -> dict[str, Any]:
    """What a table of VMs shows of one."""
    return {
        "name": name,
        "phase": "provisioning",
        "image": image,
        "cpus": 16,
        "memory-mib": 65536,
        "disk-gib": 1000,
        "ports": [port("lab", *addresses or ("10.64.1.2", "fd00::1"))],
        "node": "host1",
        "since": "2026-01-31T12:00:00.000000Z",
        "id": "0123456789abcdef",
    }


def listed(
    columns: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *vms: dict[str, Any],
    wide: bool = False,
) -> list[str]:
    """The lines of a table of VMs on a terminal of a width."""
    monkeypatch.setenv("COLUMNS", columns)
    out = Output(json=False)
    out.terminal = True
    show_table(out, "vm", vms, NOW_US, wide=wide)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


class TestTables:
    def test_a_table_elsewhere_than_on_a_terminal_is_aligned_and_plain(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Output(json=False).table(("NAME", "PHASE"), [("web", "ready"), ("a-long-name", "failed")], styled=1)
        assert capsys.readouterr().out == "NAME         PHASE\nweb          ready\na-long-name  failed\n"

    @pytest.mark.parametrize("columns", [1, 80, 130, 200])
    def test_a_table_on_a_terminal_keeps_to_its_width_and_cuts_no_name_and_no_time(
        self, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        out = Output(json=False)
        out.terminal = True
        name = "a-very-long-name-of-a-virtual-machine-that-goes-on-and-on"
        show_table(out, "vm", [vm("web", "a"), vm(name, "debian-12")], NOW_US)
        written = capsys.readouterr().out
        lines = written.splitlines()
        assert max(map(cell_len, lines)) <= max(columns, 72)
        assert ("3 minutes ago" in written) == (columns >= 130), "it goes before an address does"
        assert "10.64.1.2" in written
        assert "01234567" in written
        assert "…" not in written
        first = "".join(line.split("  ")[0].strip() for line in lines[2:])
        assert first == name
        if columns == 200:
            assert lines[0].split() == [
                "NAME",
                "PHASE",
                "IMAGE",
                "CPUS",
                "MEMORY",
                "DISK",
                "ADDRESS",
                "NODE",
                "SINCE",
                "ID",
            ]

    def test_what_was_asked_for_whole_is_whole(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = listed("120", monkeypatch, capsys, vm("web", "a"), wide=True)
        assert shown[1].split()[-2:] == ["2026-01-31T12:00:00Z", "0123456789abcdef"]

    def test_what_was_asked_for_whole_has_a_field_on_each_line_where_the_terminal_would_break_its_lines(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        web = vm("web", "a", "fd88:5987:51b9:7d55:84a:1eff:fe86:f9ce", "10.98.62.2", "fd40:5ad0:b8cb::1")
        table = listed("200", monkeypatch, capsys, web, vm("db", "a"), wide=True)
        stacked = listed("80", monkeypatch, capsys, web, vm("db", "a"), wide=True)
        assert len(table) == 3
        assert [line for line in stacked if len(line) > 80] == []
        assert stacked[:2] == ["NAME     web", "PHASE    provisioning"]
        assert "SINCE    2026-01-31T12:00:00Z" in stacked
        for address in ("fd88:5987:51b9:7d55:84a:1eff:fe86:f9ce", "10.98.62.2", "fd40:5ad0:b8cb::1"):
            assert address in " ".join(stacked).split()
        at = stacked.index("")
        assert stacked[at + 1] == "NAME     db"
        assert stacked.count("") == 1

    def test_an_address_takes_the_place_of_what_is_less_looked_for(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        address = "fd88:5987:51b9:7d55:842a:1eff:fe86:f9ce"
        header, row = listed("80", monkeypatch, capsys, {**vm("web", "tiny", address), "phase": "ready"})
        assert header.split() == ["NAME", "PHASE", "IMAGE", "MEMORY", "ADDRESS", "ID"]
        assert address in row.split()
        assert len(row) <= 80

    def test_where_an_address_has_no_room_the_others_stay(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        address = "fd88:5987:51b9:7d55:842a:1eff:fe86:f9ce"
        header, _ = listed("80", monkeypatch, capsys, {**vm("a-name-of-20-letters", "tiny", address), "phase": "ready"})
        assert header.split() == ["NAME", "PHASE", "IMAGE", "CPUS", "MEMORY", "DISK", "SINCE", "ID"]

    @pytest.mark.parametrize("columns", ["80", "120"])
    def test_the_short_one_of_several_addresses_is_shown_with_the_number_of_the_others(
        self, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        web = vm("web", "a", "fd88:5987:51b9:7d55:84a:1eff:fe86:f9ce", "10.98.62.2", "10.98.63.2")
        header, row = listed(columns, monkeypatch, capsys, web)
        at = header.index("ADDRESS")
        assert row[at:].split("  ")[0] == "10.98.62.2 +2"
        header, row = listed(columns, monkeypatch, capsys, vm("web", "a", "10.98.62.2"))
        assert row[at:].split("  ")[0] == "10.98.62.2", "it is the only one"

    def test_of_several_ports_the_addresses_are_counted_together(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        web = {**vm("web", "a"), "ports": [port("lab", "fd00::1"), port("dmz", "10.64.1.2", "fd01::1")]}
        assert "  10.64.1.2 +2  " in listed("80", monkeypatch, capsys, web)[1]

    def test_an_address_is_shown_with_its_network_where_there_are_several(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        web = vm("web", "a")
        assert "  10.64.1.2 fd00::1  " in listed("200", monkeypatch, capsys, web, wide=True)[1], "it is in one"
        web["ports"] = [port("lab", "fd00::1"), port("office"), port("dmz", "10.64.1.2", "fd01::1")]
        said = "fd00::1 (lab), 10.64.1.2 fd01::1 (dmz)"
        assert f"  {said}  " in listed("200", monkeypatch, capsys, web, wide=True)[1]
        assert f"ADDRESS  {said}" in listed("80", monkeypatch, capsys, web, wide=True)
        show_table(Output(json=False), "vm", [web], NOW_US)
        assert f"  {said}  " in capsys.readouterr().out, "elsewhere than on a terminal too"

    def test_a_vm_without_ports_has_a_dash_for_its_addresses(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for wide in (False, True):
            assert "-" in listed("200", monkeypatch, capsys, {**vm("web", "a"), "ports": []}, wide=wide)[1].split()

    def test_a_network_has_the_address_that_says_most_in_brief_and_all_of_them_in_wide(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        ula = "fd11:2222:3333:4444::/64"
        networks = [
            network("lab", "isolated", None, ula),
            network("web", "nat", "10.64.0.0/24", ula),
            network("office", "bridged", None, None, "br0"),
        ]
        out = Output(json=False)
        out.terminal = True
        show_table(out, "network", networks, NOW_US)
        head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert head == ["NAME", "PHASE", "KIND", "ADDRESS", "SINCE", "ID"]
        assert [row[3] for row in rows] == [ula, "10.64.0.0/24", "br0"]
        show_table(Output(json=False), "network", networks, NOW_US, wide=True)
        head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert head[3:6] == ["IPV4", "IPV6", "BRIDGE"]
        own = "aeb0123456789ab"
        assert [row[3:6] for row in rows] == [["-", ula, own], ["10.64.0.0/24", ula, own], ["-", "-", "br0"]]

    def test_a_port_is_a_line_and_what_was_dropped_of_it_is_explained(self, capsys: pytest.CaptureFixture[str]) -> None:
        lab, dmz = {**port("lab", "fd00::1", "10.64.0.2"), "allowed": ["203.0.113.7/32"]}, port("dmz")
        known = {"accelerator": None, "isolation": None, "process-user": None}
        dropped = {"aeplab": {"header": 4, "later": 1}, "aepgone": {"mac": 2}}
        shown = {**vm("web", "a"), **known, "ports": [lab, dmz], "dropped": dropped}
        show_vm_to_human(Output(json=False), shown, NOW_US)
        lines = capsys.readouterr().out.splitlines()
        mac = "MAC 02:00:00:00:00:01"
        assert f"port lab         fd00::1, 10.64.0.2; {mac}; tap aeplab; also allowed 203.0.113.7/32" in lines
        assert f"port dmz         {mac}; tap aepdmz" in lines
        (harmless_one,) = [at for at, line in enumerate(lines) if line.startswith("dropped lab")]
        assert "4 packets (header): " in lines[harmless_one]
        assert "harmless" in lines[harmless_one]
        assert lines[harmless_one + 1].strip() == "1 packet (later)"
        assert "dropped aepgone  2 packets (mac): from a MAC that is not the port's" in lines

    def test_a_port_on_a_switch_has_a_line_that_says_what_it_is(self, capsys: pytest.CaptureFixture[str]) -> None:
        known = {"accelerator": None, "isolation": None, "process-user": None}
        switches = [{"path": "/run/lab.ctl", "mac": "02:00:00:00:00:01"}]
        shown = {**vm("web", "a"), **known, "ports": [], "switches": switches}
        show_vm_to_human(Output(json=False), shown, NOW_US)
        lines = capsys.readouterr().out.splitlines()
        assert "port vde:/run/lab.ctl  MAC 02:00:00:00:00:01; not filtered" in lines
        assert not [line for line in lines if line.startswith("switches")]

    def test_every_kind_of_dropped_packets_is_explained(self) -> None:
        assert set(DROPPED) == {kind.name.lower() for kind in Drop}

    def test_on_a_terminal_the_time_of_an_object_is_one_of_the_place_where_it_is(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = Output(json=False)
        view = network("lab", "isolated", None, "fd00::/64")
        show_to_human(out, view, NOW_US)
        out.terminal = True
        show_to_human(out, view, NOW_US)
        times = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("since")]
        assert times == [view["since"], f"{local(view['since'])} (3 minutes ago)"]

    @pytest.mark.parametrize(
        ("accelerator", "user", "said"),
        [
            ("kvm", "own", "kvm: hardware virtualization; QEMU has a user of its own"),
            ("tcg", "own", "none: emulation is no security boundary; QEMU has a user of its own"),
            ("kvm", "root", "none: QEMU runs as root"),
            ("tcg", "node", "none: QEMU runs as the node's user"),
            ("kvm", None, "kvm: hardware virtualization"),
            ("tcg", None, "none: emulation is no security boundary"),
            (None, None, ""),
        ],
    )
    def test_what_stands_between_guest_and_host_is_one_sentence_that_says_whose_process_it_is(
        self, accelerator: str | None, user: str | None, said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        isolation = None if accelerator is None else "kvm" if accelerator == "kvm" and user in ("own", None) else "none"
        web = {**vm("web", "a"), "accelerator": accelerator, "isolation": isolation, "process-user": user}
        show_vm_to_human(Output(json=False), web, NOW_US)
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("isolation")] == ([said] if said else [])
        assert not [line for line in lines if line.startswith("process-user")]

    def test_vms_of_several_nodes_are_told_apart(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        out = Output(json=False)
        out.terminal = True
        show_table(out, "vm", [vm("web", "a"), {**vm("db", "a"), "node": "host2"}], NOW_US)
        assert "host2" in capsys.readouterr().out

    def test_each_unit_is_written_its_own_way_and_what_is_not_known_as_a_dash(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        image = {
            "name": "tiny", "phase": "importing", "format": None, "size-bytes": 1536, "virtual-size-bytes": None,
            "ready": "marker", "node": "host1", "id": "0123456789abcdef",
        }  # fmt: skip
        show_table(Output(json=False), "image", [image], NOW_US)
        assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
            ["NAME", "PHASE", "FORMAT", "SIZE", "DISK", "READY", "BY", "NODE", "ID"],
            ["tiny", "importing", "-", "1.5K", "-", "marker", "host1", "0123456789abcdef"],
        ]


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (None, "-"),
        (0, "0B"),
        (1023, "1023B"),
        (1536, "1.5K"),
        (26_214_400, "25M"),
        (3 << 30, "3.0G"),
        (5 << 40, "5.0T"),
    ],
)
def test_a_size_has_the_largest_unit_that_it_fills(size_bytes: int | None, shown: str) -> None:
    assert size(size_bytes) == shown


RULE: dict[str, Any] = {
    "direction": "in",
    "protocol": "tcp",
    "types": [],
    "cidr": None,
    "group-id": None,
    "group": None,
}
HTTP, SSH = ({"text": f"in:tcp:{number}", "ports": [str(number)], **RULE} for number in (80, 22))
FORWARD = {"address": None, "host-port": 8080, "protocol": "tcp", "guest-port": 80}


@pytest.mark.parametrize(
    ("field", "before", "after", "lines"),
    [
        ("rules", [HTTP], [HTTP, SSH], ["+ in:tcp:22"]),
        ("rules", [HTTP, SSH], [SSH], ["- in:tcp:80"]),
        ("rules", [HTTP, SSH], [SSH, HTTP], ["in:tcp:22; in:tcp:80"]),
        ("ports", [], [port("lab", "10.64.0.2")], ["+ lab: 10.64.0.2; MAC 02:00:00:00:00:01; tap aeplab"]),
        ("forwards", None, [FORWARD], ["+ 8080/tcp to 80"]),
        ("groups", [{"group": "web", "group-id": "b" * 16}], [], ["- web"]),
        ("resolver", ["10.64.0.53"], ["fd00::53"], ["- 10.64.0.53", "+ fd00::53"]),
        ("others", [], [{"name": "x", "size": 3, "note": None}], ["+ name x, size 3"]),
    ],
)
def test_diff_tells_what_came_and_what_went_of_many_values(
    field: str, before: object, after: object, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fields = [FieldChange(field, before, after)]
    show_diff(Output(json=False), Diff(1, 2, [Change("vm", "c" * 16, "web", "changed", fields)]))
    _, *shown = capsys.readouterr().out.splitlines()
    assert shown == [f"    {field}: {line}" for line in lines]


def test_diff_tells_all_values_of_what_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    fields = [FieldChange("rules", None, [HTTP, SSH])]
    show_diff(Output(json=False), Diff(1, 2, [Change("group", "c" * 16, "web", "added", fields)]))
    _, *shown = capsys.readouterr().out.splitlines()
    assert shown == ["    rules: in:tcp:80", "    rules: in:tcp:22"]
