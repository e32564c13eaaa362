"""Where a node's things are where nobody says it, and what a host's name is made into."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aetherscale import places
from aetherscale.kernel.names import is_name
from aetherscale.places import node_name


def test_the_service_has_the_places_of_the_system_and_a_user_those_of_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    environ = {"HOME": "/home/u"}
    assert places.state_dir(environ) == Path("/home/u/.local/state/aetherscale")
    assert places.config(environ) == Path("/home/u/.config/aetherscale/aetherscale.toml")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert places.state_dir(environ) == Path("/var/lib/aetherscale")
    assert places.config(environ) == Path("/etc/aetherscale/aetherscale.toml")


def test_a_home_that_is_not_set_or_relative_is_that_of_the_users_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    home = pwd.getpwuid(os.geteuid()).pw_dir
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("u", "x", uid, uid, "", home, "/bin/sh")))
    assert places.state_dir({}) == Path(home) / ".local/state/aetherscale"
    assert places.state_dir({"HOME": "elsewhere"}) == Path(home) / ".local/state/aetherscale"


def test_a_user_without_an_entry_has_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert places.state_dir({}) == Path("/.local/state/aetherscale")


@pytest.mark.parametrize(
    ("hostname", "name"),
    [
        ("host1", "host1"),
        ("My_Host.example.org", "my-host"),
        ("10-0-0-1", "n-10-0-0-1"),
        ("-x-", "x"),
        ("", "node"),
        ("…", "node"),
        ("a" * 100, "a" * 60),
    ],
)
def test_a_hosts_name_is_made_into_a_valid_one(hostname: str, name: str) -> None:
    assert node_name(hostname) == name
    assert is_name(name)
