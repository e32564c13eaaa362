"""Programs of Debian packages that are unpacked and not installed: found in the tree, and run with the packages' own
loader and libraries, whatever the host has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from aetherscale.actors.images.building.programs import run
from aetherscale.kernel.fault import Fault

LOADER: Final = "ld-linux-x86-64.so.2"
LIBRARIES: Final = "lib/x86_64-linux-gnu"
REPORT: Final = "report this, with the version of the distribution"


def with_libraries(roots: Iterable[str], depends: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The packages `roots`, the shared libraries that they depend on, and theirs."""
    needed: list[str] = []
    queue = list(roots)
    while queue:
        name = queue.pop()
        needed.append(name)
        queue += [wanted for wanted in depends.get(name, ()) if wanted.startswith("lib") and wanted not in needed]
    return sorted(set(needed))


async def libraries_of(tree: Path, program: str) -> dict[str, Path]:
    """The shared libraries that the program needs, by name. Each must be from the packages."""
    found: dict[str, Path] = {}
    for line in (await run_in(tree, program, loader_options=("--list",))).splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        if arrow and not name.endswith(LOADER):
            found[name] = Path(rest.partition(" (0x")[0])
            if not found[name].is_relative_to(tree):
                raise Fault(f"{program} needs {name}, which none of the packages has", REPORT, retryable=False)
    return found


async def run_in(
    tree: Path, program: str, *arguments: str, given: bytes | None = None, loader_options: tuple[str, ...] = ()
) -> str:
    """The output of an unpacked program, with its own libraries and loader, which reads `given`."""
    libraries = f"{tree / LIBRARIES}:{tree / 'usr' / LIBRARIES}"
    return await run(
        str(find_in(tree, f"{LIBRARIES}/{LOADER}")),
        "--inhibit-cache",
        "--library-path",
        libraries,
        *loader_options,
        str(find_in(tree, program)),
        *arguments,
        given=given,
    )


def find_in(tree: Path, path: str) -> Path:
    """Where `path` of the root lies in the unpacked tree: there, or below `usr`, where newer packages have it."""
    for candidate in (tree / path, tree / "usr" / path):
        if candidate.is_file():
            return candidate
    raise Fault(f"none of the packages has {path}", REPORT, retryable=False)
