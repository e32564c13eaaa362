"""How packets that were dropped are shown."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, Final

import pytest

from aetherscale.actors.firewall.model.judge import LAW
from aetherscale.gateways.cli.firewall_watch import _show
from aetherscale.gateways.cli.output import Output

COLUMNS: Final = 80
LONG6: Final = "fd78:c42:ed33:a471:1cd6:dfff:fe5d:9291"
DROP: Final = {
    "time": "2026-01-31T12:00:00.250000Z",
    "vm": "web",
    "direction": "in",
    "kind": "uninvited",
    "source": "10.64.0.3",
    "target": "10.64.0.2",
    "other": "db",
    "packet": "tcp/22",
    "because": f"No group of 'web' allows it. {LAW[1]}",
}


def shown(capsys: pytest.CaptureFixture[str], **fields: Any) -> list[str]:
    context: Any = SimpleNamespace(out=Output(json=False))
    _show(context, {**DROP, **fields})
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "tcp/22 from db, 10.64.0.3 (uninvited)"),
        ({"other": None}, "tcp/22 from 10.64.0.3 (uninvited)"),
        ({"direction": "out", "kind": "forbidden"}, "tcp/22 to db, 10.64.0.2 (forbidden)"),
        ({"direction": "out", "kind": "unreachable", "other": None}, "tcp/22 to 10.64.0.2 (unreachable)"),
        ({"direction": "out", "kind": "ipv4", "other": None}, "tcp/22 from 10.64.0.3 to 10.64.0.2 (ipv4)"),
        ({"direction": "out", "kind": "ipv4", "source": "", "other": "db"}, "tcp/22 from ? to db, 10.64.0.2 (ipv4)"),
    ],
)
def test_both_ends_are_told_where_the_sender_may_be_a_lie(
    capsys: pytest.CaptureFixture[str], fields: dict[str, Any], text: str
) -> None:
    assert shown(capsys, **fields) == [f"{DROP['time']} web: {text}", f"    {DROP['because']}"]


def test_on_a_terminal_it_fits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    lines = shown(capsys, vm="w" * 40, source=LONG6, target=LONG6, kind="ipv6", other="db\x1b[31m")
    assert len(lines) > 2
    assert all(len(line) < COLUMNS and "\x1b" not in line for line in lines)
    assert all(line.startswith("    ") for line in lines[1:])
