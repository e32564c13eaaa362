"""`just debian-guest [RELEASE…] [ARGUMENT…]`: the suites of networks on Debian's own kernels, under emulation.

Arguments are pytest's, for what is run instead of the matrix of `inside.py`. Whoever runs the other tests has the
kernel of that machine; hosts have these: conntrack for bridges, and nearly all of it in modules.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from tests.support import debian_host

PATIENCE_S: Final = 3 * 3600.0


def main(arguments: Sequence[str]) -> int:
    """0 where the suites pass on each release."""
    if lacking := debian_host.lacking():
        print(f"debian-guest: {lacking}")
        return 1
    releases = [word for word in arguments if word in debian_host.RELEASES] or debian_host.RELEASES[:1]
    others = [word for word in arguments if word not in debian_host.RELEASES]
    command = [debian_host.PYTHON, "-m", "tests.debian.inside", *others]
    ended = [debian_host.run(release, command, PATIENCE_S) for release in releases]
    return int(any(status != 0 for status in ended))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
