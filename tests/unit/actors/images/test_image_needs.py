"""What `doctor` says of the recipes of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from aetherscale.actors.images.building import privilege
from aetherscale.actors.images.needs import findings
from aetherscale.settings import Settings


def programs(place: Path, *names: str) -> str:
    """A directory for PATH in which programs of these names are."""
    for name in names:
        (place / name).touch(0o755)
    return str(place)


APT = ("apt-get", "apt-cache", "dpkg", "dpkg-deb")


def test_what_only_a_whole_debian_needs_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path, *APT))
    monkeypatch.setattr(privilege, "PROGRAMS", {"mmdebstrap-of-no-package": "mmdebstrap"})
    (found,) = findings(Settings(tmp_path, "host1"))
    assert (found.status, found.remedy) == ("ok", "")
    assert "only debian-12 and debian-13 need more: apt-get install --no-install-recommends mmdebstrap" in found.found


def test_it_is_silent_where_all_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path, *APT, *privilege.PROGRAMS, "newuidmap"))
    (found,) = findings(Settings(tmp_path, "host1"))
    assert "debian-12" not in found.found


def test_a_host_without_apt_imports_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path, "dpkg"))
    (found,) = findings(Settings(tmp_path, "host1"))
    assert found.status == "warning"
