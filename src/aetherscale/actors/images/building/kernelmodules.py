"""Which kernel modules a guest needs, and the order in which to load them, read from the modules themselves.

A package that is unpacked but not installed has no `modules.dep`, since `depmod` runs when it is installed; but each
module says by itself what it depends on (`modinfo -F depends`), which is all that `insmod` needs.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def find(directory: Path) -> dict[str, Path]:
    """Every module below `directory` by its name, as the kernel spells it: with `_`, never `-`."""
    found: dict[str, Path] = {}
    for pattern in ("*.ko", "*.ko.xz"):
        for path in sorted(directory.rglob(pattern)):
            found[path.name.partition(".")[0].replace("-", "_")] = path
    return found


def read(path: Path) -> bytes:
    """The module's bytes, unpacked where the distribution compresses its modules. Raises LZMAError on damage."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def in_load_order(wanted: Iterable[str], available: Mapping[str, Path]) -> dict[str, bytes]:
    """The wanted modules and all that they depend on, each after what it depends on, by name.

    A wanted module that is not there is left out: it is built into the kernel, or this kernel does not have it. One
    that another depends on must be there, else KeyError.
    """
    ordered: dict[str, bytes] = {}

    def add(name: str, *, needed: bool) -> None:
        if name in ordered or (name not in available and not needed):
            return
        data = read(available[name])
        depends = _DEPENDS.search(data)
        for dependency in depends[1].decode().split(",") if depends else ():
            if dependency:
                add(dependency.replace("-", "_"), needed=True)
        ordered[name] = data

    for name in wanted:
        add(name, needed=False)
    return ordered
