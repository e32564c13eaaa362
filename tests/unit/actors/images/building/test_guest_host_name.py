"""How the guest of `tiny` comes by its name, by what the network's server of names says of its address."""

from __future__ import annotations

import os
import subprocess
from importlib import resources
from pathlib import Path

import pytest

SCRIPT = resources.files("aetherscale.actors.images.building") / "guest" / "host-name"
ADDRESSES = "2: eth0    inet6 fd00::1/64 scope global dynamic\n"
ANSWER = "Server:\t\tfd00::53\nAddress:\tfd00::53:53\n\n1.0.0.d.f.ip6.arpa\tname = {name}\n\n"


def called(place: Path, answer: str, name: str = "tiny") -> str:
    """What a guest is called after the script, where it was called `name` and nslookup says this."""
    (place / "name").write_text(name)
    (place / "answer").write_text(answer)
    (place / "addresses").write_text(ADDRESSES)
    programs = {
        "hostname": f'[ $# = 0 ] && cat {place}/name || printf %s "$1" > {place}/name',
        "ip": f"cat {place}/addresses",
        "nslookup": f'[ "$1" = fd00::1 ] && cat {place}/answer',
        "sleep": ":",
    }
    for program, line in programs.items():
        path = place / program
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    environment = {"PATH": f"{place}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-s"], input=SCRIPT.read_bytes(), env=environment, check=True, timeout=60)
    return (place / "name").read_text()


def test_it_is_called_as_its_vm_whose_address_it_has(tmp_path: Path) -> None:
    assert called(tmp_path, ANSWER.format(name="web-1.lab.internal")) == "web-1"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        *(
            ANSWER.format(name=name)
            for name in ("host.example.org", "internal", "lab.internal.example.org", "a b.lab.internal")
        ),
    ],
)
def test_what_is_no_name_of_a_vm_leaves_it_as_it_is(tmp_path: Path, answer: str) -> None:
    assert called(tmp_path, answer) == "tiny"


def test_a_name_of_a_lease_stays(tmp_path: Path) -> None:
    assert called(tmp_path, ANSWER.format(name="web.lab.internal"), "leased") == "leased"
