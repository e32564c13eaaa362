"""`image build debian-12` on a node that a user without root runs, with subordinate ids and nothing else.

`just debian-user` runs this: minutes, so that it is no part of `just test`. `RECIPE` names the recipe. The user is
there in a mount namespace alone, in which /etc/passwd, subuid and subgid are files of the test.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale.actors.images.building.programs import search_path
from tests.support.node import ROOT

RECIPE = os.environ.get("RECIPE", "debian-12")
ID = 61234
SUBORDINATE = 300_000_000
PROGRAMS = ("mmdebstrap", "newuidmap", "newgidmap", "unshare", "setpriv", "mke2fs", "qemu-img")

SERVES = """\
set -eu
aetherscale() { "$PYTHON" -m aetherscale "$@" --state-dir "$HOME/state"; }
aetherscale serve --allow-unisolated --no-http > "$HOME/out" 2>&1 &
node=$!
trap 'kill $node || true; wait $node || true' EXIT
until grep -q ^ready: "$HOME/out"; do kill -0 $node || { cat "$HOME/out"; exit 9; }; sleep 0.2; done
aetherscale image build RECIPE --timeout 50m
aetherscale image inspect RECIPE
"""
PLACE = """\
set -eu
for file in passwd subuid subgid; do mount --bind "$HOME/etc/$file" "/etc/$file"; done
mount --bind "$BASE" "$HOME/python"
mount --bind "$HOME/tmp" /tmp
exec setpriv --reuid ID --regid ID --clear-groups sh "$HOME/serves"
"""


def _may_unshare() -> bool:
    trial = ("setpriv", "--reuid", str(ID), "--regid", str(ID), "--clear-groups", "unshare", "--user", "true")
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        os.geteuid() != 0 or None in [shutil.which(program, path=search_path()) for program in PROGRAMS],
        reason=f"needs root, to become a user who has it not, and {', '.join(PROGRAMS)}",
    ),
]


@pytest.fixture
def home() -> Iterator[Path]:
    """The home of the user, where others may look in: pytest's own directories are root's alone."""
    place = Path(tempfile.mkdtemp(prefix="debian-user-", dir="/var/tmp"))
    try:
        (place / "etc").mkdir()
        (place / "python").mkdir()
        (place / "tmp").mkdir()
        (place / "tmp").chmod(0o1777)
        user = f"builder:x:{ID}:{ID}::{place}:/bin/sh\n"
        (place / "etc/passwd").write_text(Path("/etc/passwd").read_text() + user)
        for name in ("subuid", "subgid"):
            (place / "etc" / name).write_text(f"builder:{SUBORDINATE}:65536\n")
        (place / "place").write_text(PLACE.replace("ID", str(ID)))
        (place / "serves").write_text(SERVES.replace("RECIPE", RECIPE))
        place.chmod(0o755)
        os.chown(place, ID, ID)
        yield place
    finally:
        shutil.rmtree(place)


def test_a_user_builds_a_debian_with_subordinate_ids_alone(home: Path) -> None:
    if not _may_unshare():
        pytest.skip("this host lets no user make a user namespace")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    done = subprocess.run(
        ["unshare", "--mount", "sh", str(home / "place")],
        env={
            "HOME": str(home),
            "BASE": sys.base_prefix,
            "PATH": f"{sys.prefix}/bin:{search_path()}",
            "PYTHON": str(home / "python/bin/python3"),
            "LD_LIBRARY_PATH": str(home / "python/lib"),
            "PYTHONPATH": f"{ROOT / 'src'}:{packages}",
            "XDG_CACHE_HOME": str(home / "cache"),
            **{name: os.environ[name] for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ},
        },
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    said = dict(line.split(None, 1) for line in done.stdout.splitlines() if len(line.split(None, 1)) == 2)
    assert said["os-id"].strip() == RECIPE.replace("-", " ")
    assert (said["agent"].strip(), said["first-boot"].strip()) == ("yes", "aetherscale")
    image = next((home / "state/images").glob("*.qcow2"))
    assert image.stat().st_uid == ID
    strangers = [path for path in home.rglob("*") if path.lstat().st_uid not in (0, ID)]
    assert strangers == [], "what the user's subordinate ids had is removed"


assert shlex.quote(RECIPE) == RECIPE, "it is a part of a script"
