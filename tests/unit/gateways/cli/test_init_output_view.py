"""How `vm show` shows what an init script has printed."""

from __future__ import annotations

import re

import pytest

from aetherscale.gateways.cli.output import Output
from aetherscale.gateways.cli.views import show_vm_to_human
from tests.unit.gateways.cli.test_cli_views import NOW_US, vm


@pytest.mark.parametrize("count", [0, 1, 10, 11, 500])
def test_of_what_an_init_script_has_printed_the_end_is_shown(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    output = "".join(f"line {number}\n" for number in range(count))
    script = {"sha256": "0" * 64, "state": "succeeded", "exit-status": 0, "output": output}
    web = {**vm("web", "a"), "accelerator": None, "isolation": None, "process-user": None, "init-script": script}
    show_vm_to_human(Output(json=False), web, NOW_US)
    shown = capsys.readouterr().out
    lines = [line.split("line ")[1] for line in shown.splitlines() if re.search(r"line \d+$", line)]
    assert lines == [str(number) for number in range(max(0, count - 10), count)]
    said = f"(the last 10 of {count} lines; all that is known: aetherscale vm show web --json)"
    assert (said in shown) == (count > 10)
