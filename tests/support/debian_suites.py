"""The marks of the slow suites that build a Debian and log in to its guests."""

from __future__ import annotations

import os
import shutil
from typing import Final

import pytest

MARKS: Final = [
    pytest.mark.integration,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        os.geteuid() != 0 or None in map(shutil.which, ("mmdebstrap", "ssh")),
        reason="needs root, mmdebstrap and ssh: apt-get install mmdebstrap openssh-client",
    ),
]
