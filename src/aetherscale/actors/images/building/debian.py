"""Debian packages as ingredients: found and downloaded with the host's own apt, unpacked, never installed.

apt checks the archive's signatures, as on any Debian system. It needs no privilege here, since its caches are ours:
the host's package lists are only read, and where they are missing or too old, lists of our own are fetched. Nothing
is executed that a package brings for its installation.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from aetherscale.actors.images.building.aptwords import Teller
from aetherscale.actors.images.building.programs import LOG_TAIL_CHARACTERS, Say, follow, run
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.threads import to_the_end

_STAMP = "fetched"
_DEPENDS_OPTIONS = tuple(
    f"--no-{relation}" for relation in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
)
_DEPENDENCY = re.compile(r" ( |\|)(?:Pre)?Depends: (\S+)")
_URI_LINE = re.compile(r"'[^']+' (\S+\.deb) (\d+) SHA256:([0-9a-f]{64})")

# Hooks of the host (they tell desktops that packages changed) are not needed here, and need root.
_CONFIGURATION = """\
Dir::Cache "{cache}";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


class Package(Struct, frozen=True):
    """A package as apt would download it: the file's name (with the version), its size and its SHA-256 in hex."""

    file_name: str
    size_bytes: int
    sha256: str


class Archive:
    """The package archive that this host's apt is set up for, and a directory of ours in which to keep its files.

    A second use of the same directory at the same time must be kept out by the caller.
    """

    def __init__(self, directory: Path, *, configuration: str = "") -> None:
        """`configuration` is added to apt's, in the form of apt.conf(5); tests point it at another archive."""
        self._directory = directory
        self._packages = directory / "packages"
        self._lists = directory / "lists"
        self._configuration = configuration
        self._own_lists = False

    async def choose_lists(self, probe: str, say: Say) -> None:
        """Make sure that apt has package lists that know the package `probe`.

        Raises Fault where there is no apt, or no archive with such a package can be reached.
        """
        for program in ("apt-get", "apt-cache", "dpkg", "dpkg-deb"):
            if shutil.which(program) is None:
                raise Fault(
                    f"this host has no {program}",
                    "import an image instead",
                    retryable=False,
                )
        await to_the_end(self._make_directories)
        self._write_configuration()
        self._own_lists = await self._own_lists_are_newer()
        self._write_configuration()
        if await self._knows(probe):
            return
        await self.refresh(say)
        if not await self._knows(probe):
            raise Fault(
                f"this host's package archive has no {probe}",
                "this needs Debian 12 or later; import an image instead",
                retryable=False,
            )

    async def refresh(self, say: Say) -> None:
        """Fetch package lists into a place of our own, and use those until the host's own are newer."""
        self._own_lists = True
        self._write_configuration()
        say("fetching the package lists")
        await self._follow(say, "apt-get", "-q", "update")
        (self._lists / _STAMP).touch()

    async def dependencies(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The dependencies of each of `names`, and of each package that those need. Of alternatives the first."""
        text = await self._run("apt-cache", "depends", "--recurse", *_DEPENDS_OPTIONS, *names)
        found: dict[str, list[str]] = {}
        current: list[str] = []
        alternative = False
        for line in text.splitlines():
            if not line.startswith(" "):
                current = found.setdefault(line.strip(), [])
                alternative = False
            elif match := _DEPENDENCY.match(line):
                if not alternative:
                    current.append(match[2].removesuffix(":any"))
                alternative = match[1] == "|"
        return {name: tuple(depends) for name, depends in found.items()}

    async def candidates(self, names: Sequence[str]) -> tuple[Package, ...]:
        """The packages that would be downloaded for `names`, sorted by file name. Raises Fault if one does not
        exist.
        """
        with tempfile.TemporaryDirectory(dir=self._directory) as empty:
            text = await self._run("apt-get", "download", "--print-uris", *names, cwd=Path(empty))
        packages = [Package(m[1], int(m[2]), m[3]) for line in text.splitlines() if (m := _URI_LINE.match(line))]
        if len(packages) != len(set(names)):
            raise Fault(
                f"apt knows {len(packages)} of the {len(set(names))} packages {' '.join(names)}",
                "`apt-get update` and try again",
                log_tail=text[-LOG_TAIL_CHARACTERS:],
                retryable=False,
            )
        return tuple(sorted(packages, key=lambda package: package.file_name))

    async def fetch(self, packages: Mapping[str, Package], say: Say) -> dict[str, Path]:
        """Have each package (by its name) on this host's disk, whole and with the right checksum; where they are.

        Packages of an earlier use that are not among them are deleted. Raises Fault when one does not arrive.
        """
        missing = [name for name, package in packages.items() if not await to_the_end(self._has, package)]
        if missing:
            size_mib = sum(packages[name].size_bytes for name in missing) / (1 << 20)
            say(f"downloading {len(missing)} packages, {size_mib:.0f} MiB")
            with tempfile.TemporaryDirectory(dir=self._directory) as arrivals:
                await self._follow(say, "apt-get", "-q", "download", *missing, cwd=Path(arrivals))
                await to_the_end(self._take, Path(arrivals))
        for name in missing:
            if not await to_the_end(self._has, packages[name]):
                file_name = packages[name].file_name
                raise Fault(f"{file_name} did not arrive as its archive says", "try again", retryable=True)
        await to_the_end(self._forget_all_but, {package.file_name for package in packages.values()})
        return {name: self._packages / package.file_name for name, package in packages.items()}

    async def unpack(self, packages: Iterable[Path], directory: Path) -> None:
        """Lay the packages' files below `directory`, all into one tree, as they would lie below `/`."""
        for package in packages:
            await self._run("dpkg-deb", "-x", str(package), str(directory))

    async def require_amd64(self) -> None:
        """Raises Fault on a host of another architecture."""
        if (architecture := (await self._run("dpkg", "--print-architecture")).strip()) != "amd64":
            raise Fault(
                f"the recipe is for amd64, and this host is {architecture}", "import an image instead", retryable=False
            )

    def _make_directories(self) -> None:
        for directory in (self._packages, self._lists / "partial", self._directory / "cache" / "archives" / "partial"):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _take(self, arrivals: Path) -> None:
        for arrival in arrivals.iterdir():
            arrival.replace(self._packages / arrival.name)

    def _forget_all_but(self, file_names: set[str]) -> None:
        for path in self._packages.iterdir():
            if path.name not in file_names:
                path.unlink()

    def _has(self, package: Package) -> bool:
        path = self._packages / package.file_name
        if not path.is_file() or path.stat().st_size != package.size_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256

    async def _knows(self, name: str) -> bool:
        try:
            return bool((await self._run("apt-cache", "show", "--no-all-versions", name)).strip())
        except Fault:
            return False

    def _write_configuration(self) -> None:
        text = _CONFIGURATION.format(cache=self._directory / "cache") + self._configuration
        if self._own_lists:
            text += f'Dir::State::lists "{self._lists}";\n'
        (self._directory / "apt.conf").write_text(text)

    async def _own_lists_are_newer(self) -> bool:
        stamp = self._lists / _STAMP
        if not stamp.exists():
            return False
        setting = await self._run("apt-config", "shell", "LISTS", "Dir::State::lists/d")
        host_lists = Path(setting.strip().partition("=")[2].strip("'"))
        return await to_the_end(_newer_than_all, stamp, host_lists)

    async def _run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        own = ("-c", str(self._directory / "apt.conf")) if program.startswith("apt-") else ()
        return await run(program, *own, *arguments, cwd=cwd)

    async def _follow(self, say: Say, *words: str, cwd: Path | None = None) -> None:
        """Run apt, and say which package it is at."""
        teller = Teller(say)
        program, *arguments = words
        own = ("-c", str(self._directory / "apt.conf"))
        await follow(program, *own, *arguments, cwd=cwd, hear=teller.hear, silent=teller.silent)


def _newer_than_all(stamp: Path, lists: Path) -> bool:
    """Whether `stamp` was changed after every list in `lists` arrived there."""
    return stamp.stat().st_ctime > max((path.stat().st_ctime for path in lists.glob("*Release")), default=0.0)
