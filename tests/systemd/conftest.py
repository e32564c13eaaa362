"""What the suites inside of a booted systemd share: one installation."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.support.node import ROOT


@pytest.fixture(scope="session")
def program() -> tuple[str, ...]:
    """The command line of an installation that everybody may read, on a host whose users have managers."""
    # The system's own Python: the one that the tests run on may be in a home, which the service does not see.
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", "/opt/aetherscale"], check=True)
    (packages,) = Path("/opt/aetherscale/lib").glob("python3*/site-packages")
    site = Path(sysconfig.get_path("purelib")).relative_to(ROOT)
    (packages / "shared.pth").write_text(f"/srv/aetherscale/{site}\n/srv/aetherscale/src\n")
    script = Path("/opt/aetherscale/bin/aetherscale")
    script.write_text('#!/bin/sh\nexec /opt/aetherscale/bin/python -m aetherscale "$@"\n')
    script.chmod(0o755)
    Path("/opt/aetherscale/bin/nats-server").symlink_to(f"/srv/aetherscale/{site.parents[2]}/bin/nats-server")
    # The container's /etc is empty, and so has no PAM through which a user's manager is started elsewhere.
    drop_in = Path("/etc/systemd/system/user@.service.d/without-pam.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nPAMName=\nEnvironment=XDG_RUNTIME_DIR=/run/user/%i\n")
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    return ("/opt/aetherscale/bin/python", "-m", "aetherscale")
