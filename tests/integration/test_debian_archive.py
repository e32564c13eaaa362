"""Packages found, downloaded and unpacked with apt, from an archive of the test's own, and what happens without one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import select
import subprocess
from pathlib import Path

import pytest

from aetherscale.actors.images.building import tiny
from aetherscale.actors.images.building.debian import Archive
from aetherscale.actors.images.building.programs import run
from aetherscale.kernel.fault import Fault
from tests.support.tiny_image import package_cache

pytestmark = pytest.mark.integration


class OwnArchive:
    """An archive in a directory, with packages that have one file each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.apt_configuration = f'Dir::Etc::sourcelist "{directory}/sources";\nDir::Etc::sourceparts "/dev/null";\n'
        directory.mkdir()
        # Of a `file:` archive apt may read the lists where they are, and so know of what was never fetched.
        (directory / "sources").write_text(f"deb [trusted=yes] copy:{directory} ./\n")

    def publish(self, *packages: tuple[str, str, str]) -> None:
        """Have these packages alone, as (name, version, depends)."""
        for old in self.directory.glob("*.deb"):
            old.unlink()
        index = ""
        for name, version, depends in packages:
            tree = self.directory / "tree"
            (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
            (tree / "DEBIAN").chmod(0o755)  # dpkg-deb takes nothing less, whatever the umask
            (tree / "usr/share").mkdir(parents=True, exist_ok=True)
            (tree / "usr/share" / name).write_text(version)
            control = (
                f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody\nDescription: test\n"
            )
            control += f"Depends: {depends}\n" if depends else ""
            (tree / "DEBIAN/control").write_text(control)
            file = self.directory / f"{name}_{version}_amd64.deb"
            subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, file], check=True, capture_output=True)
            (tree / "usr/share" / name).unlink()
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            index += f"{control}Filename: ./{file.name}\nSize: {len(data)}\nSHA256: {digest}\n\n"
        (self.directory / "Packages").write_text(index)


@pytest.fixture
def own(tmp_path: Path) -> OwnArchive:
    return OwnArchive(tmp_path / "archive")


async def versions(archive: Archive, *names: str, into: Path) -> dict[str, str]:
    """What is unpacked after having the packages."""
    packages = await archive.candidates(names)
    files = await archive.fetch({package.file_name.partition("_")[0]: package for package in packages}, print)
    await archive.unpack(files.values(), into)
    return {path.name: path.read_text() for path in (into / "usr/share").iterdir()}


async def test_a_program_that_finds_no_room_is_told_as_that_and_not_tried_again() -> None:
    with pytest.raises(Fault, match=r"no room on the disk: `dd .*` failed") as full:
        await run("dd", "if=/dev/zero", "of=/dev/full", "count=1")
    assert (full.value.remedy, full.value.retryable) == ("make room: df -h; df -i", False)
    assert "No space left on device" in full.value.log_tail
    with pytest.raises(Fault, match=r"failed with exit status 1$") as other:
        await run("sh", "-c", "exit 1")
    assert other.value.retryable


async def test_packages_are_fetched_and_unpacked_and_old_ones_forgotten(own: OwnArchive, tmp_path: Path) -> None:
    own.publish(("one", "1", "two | three, libfour"), ("two", "1", ""), ("libfour", "1", ""))
    archive = Archive(tmp_path / "cache", configuration=own.apt_configuration)
    await archive.choose_lists("one", print)
    depends = await archive.dependencies(["one"])
    assert (depends["one"], depends["two"], depends["libfour"]) == (("two", "libfour"), (), ())
    assert await versions(archive, "one", "two", into=tmp_path / "first") == {"one": "1", "two": "1"}
    assert await versions(archive, "one", into=tmp_path / "second") == {"one": "1"}
    assert [path.name for path in (tmp_path / "cache/packages").iterdir()] == ["one_1_amd64.deb"]


async def test_a_package_that_was_damaged_meanwhile_is_fetched_again(own: OwnArchive, tmp_path: Path) -> None:
    own.publish(("one", "1", ""))
    archive = Archive(tmp_path / "cache", configuration=own.apt_configuration)
    await archive.choose_lists("one", print)
    await versions(archive, "one", into=tmp_path / "first")
    kept = tmp_path / "cache/packages/one_1_amd64.deb"
    whole = kept.read_bytes()
    kept.write_bytes(bytes(len(whole)))
    assert await versions(archive, "one", into=tmp_path / "second") == {"one": "1"}
    assert kept.read_bytes() == whole


async def test_lists_that_are_older_than_the_archive_are_fetched_again(own: OwnArchive, tmp_path: Path) -> None:
    own.publish(("one", "1", ""))
    archive = Archive(tmp_path / "cache", configuration=own.apt_configuration)
    await archive.choose_lists("one", print)
    own.publish(("one", "2", ""))
    with pytest.raises(Fault) as failed:
        await versions(archive, "one", into=tmp_path / "first")
    assert failed.value.retryable
    assert failed.value.log_tail
    await archive.refresh(print)
    assert await versions(archive, "one", into=tmp_path / "second") == {"one": "2"}


async def test_an_archive_without_the_package_says_what_to_do(own: OwnArchive, tmp_path: Path) -> None:
    own.publish(("one", "1", ""))
    with pytest.raises(Fault, match="has no linux-image-cloud-amd64") as failed:
        await tiny.build(tmp_path / "image", tmp_path / "cache", print, apt_configuration=own.apt_configuration)
    assert "import an image instead" in failed.value.remedy
    assert not (tmp_path / "image").exists()


async def test_a_host_without_apt_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Fault, match="has no apt-get") as failed:
        await tiny.build(tmp_path / "image", tmp_path / "cache", print)
    assert "import an image instead" in failed.value.remedy
    assert not failed.value.retryable


async def test_an_archive_that_cannot_be_reached_is_told_with_what_apt_says(tmp_path: Path) -> None:
    configuration = f'Dir::Etc::sourcelist "{tmp_path}/sources";\nDir::Etc::sourceparts "/dev/null";\n'
    configuration += 'Acquire::Retries "0";\n'
    (tmp_path / "sources").write_text("deb http://127.0.0.1:9/debian stable main\n")
    with pytest.raises(Fault) as failed:
        await tiny.build(tmp_path / "image", tmp_path / "cache", print, apt_configuration=configuration)
    assert failed.value.retryable
    assert "127.0.0.1" in failed.value.log_tail


async def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(Fault, match="not done in 1 s"):
        await run("sh", "-c", script, timeout_s=1)
    assert ends(int((tmp_path / "pid").read_text()))


async def test_a_cancelled_build_ends_the_program_that_runs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")
    script = f"sleep 1000 & echo $! > {tmp_path}/pid; echo > {tmp_path}/started; wait"
    running = asyncio.create_task(run("sh", "-c", script))
    await asyncio.to_thread((tmp_path / "started").read_text)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ends(int((tmp_path / "pid").read_text()))


def ends(pid: int) -> bool:
    """Whether a process that was sent a signal ends; nobody is told when somebody else's child is."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 60)[0])
    finally:
        os.close(process)


@pytest.mark.timeout(600)
async def test_an_image_is_the_same_bytes_whether_its_parts_were_kept_or_not(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    cache = package_cache(pytestconfig)
    first = await tiny.build(tmp_path / "first", cache, print)
    phases: list[str] = []
    second = await tiny.build(tmp_path / "second", cache, phases.append)
    # Another test may be building in the same cache.
    assert [phase for phase in phases if phase != "waiting for another build"] == ["putting the disk together"]
    anew = tmp_path / "anew"
    anew.mkdir()
    (anew / "packages").symlink_to(cache / "packages")
    third = await tiny.build(tmp_path / "third", anew, phases.append)
    assert "unpacking the packages" in phases
    assert first.sha256 == second.sha256 == third.sha256
    assert hashlib.sha256((tmp_path / "third").read_bytes()).hexdigest() == third.sha256
    assert (tmp_path / "third").stat().st_mode & 0o777 == 0o600
    assert third.size_bytes == third.virtual_size_bytes == (tmp_path / "third").stat().st_size < 32 << 20
    assert any(package.startswith("linux-image-") for package in third.packages)
