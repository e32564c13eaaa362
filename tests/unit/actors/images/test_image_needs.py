"""What `doctor` says of the recipes of images."""

from __future__ import annotations

import shutil
import subprocess
import sys
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


ASKED = """
import asyncio
from aetherscale.actors.images.building import privilege
from aetherscale.kernel.fault import Fault

async def refused(*words, **options):
    raise Fault("unshare failed", "")

privilege.missing, privilege.run = list, refused  # as where a user namespace cannot be filled
try:
    asyncio.run(privilege.require())
except Fault as fault:
    print(fault, fault.remedy)
"""


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
@pytest.mark.parametrize(
    ("options", "said"), [(("--no-new-privs",), "image export"), ((), "usermod --add-subuids")], ids=["service", "user"]
)
def test_who_cannot_make_a_whole_debian_is_told_what_helps(options: tuple[str, ...], said: str) -> None:
    """A service stays the user that it is, whatever is typed for that user."""
    if not options and "NoNewPrivs:\t1" in Path("/proc/self/status").read_text():
        pytest.skip("these tests may themselves gain no privilege")
    words = ("setpriv", *options, "--", sys.executable, "-c", ASKED)
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "only root can make this image here" in done.stdout
    assert said in done.stdout
