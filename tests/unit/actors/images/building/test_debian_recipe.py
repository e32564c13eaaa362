"""The recipes of a whole Debian, as far as they are text: sources, what mmdebstrap is told, the guest's files."""

from __future__ import annotations

import io
import os
import struct
import tarfile
from pathlib import Path

import pytest

from aetherscale.actors.images.building import debiandisk, debianimage, debiantree, gptdisk, guestfiles, mirrors
from aetherscale.actors.images.building.aptwords import Teller
from aetherscale.actors.images.building.debiantree import Plan
from aetherscale.actors.images.building.programs import follow
from aetherscale.kernel.fault import Fault

SOURCES = ("deb http://mirror.example/debian bookworm main",)
PLAN = Plan("bookworm", SOURCES, ("nginx", "g++"))
BOOT_IMAGE = bytes(range(256)) + bytes(254) + b"\x55\xaa"


class TestSources:
    def test_of_the_hosts_archives_those_of_the_release_are_taken(self) -> None:
        targets = (
            "http://mirror.example/debian/ bookworm main\n"
            "http://mirror.example/debian/ bookworm contrib\n"
            "http://mirror.example/debian-security/ bookworm-security main\n"
            "http://mirror.example/debian/ bookworm-backports main\n"
            "http://mirror.example/debian/ trixie main\n"
        )
        assert mirrors.of_the_host("bookworm", targets) == (
            "deb http://mirror.example/debian bookworm main",
            "deb http://mirror.example/debian-security bookworm-security main",
        )

    @pytest.mark.parametrize(
        "uri", ["http://joe:secret@mirror.example/debian", "file:/srv/debian", "cdrom:[Debian]/", "http://a/b?key=1"]
    )
    def test_what_a_guest_must_not_or_cannot_know_is_not_taken(self, uri: str) -> None:
        assert mirrors.of_the_host("bookworm", f"{uri} bookworm main\n") == ()

    def test_a_host_of_another_release_has_nothing_to_say(self) -> None:
        assert mirrors.of_the_host("trixie", "http://mirror.example/debian/ bookworm main\n") == ()

    async def test_a_mirror_that_is_given_is_the_only_one(self) -> None:
        found = await mirrors.sources("trixie", "http://mirror.example/debian")
        assert {line.split()[1] for line in found} == {"http://mirror.example/debian"}
        assert {line.split()[2] for line in found} == {"trixie", "trixie-updates"}


class TestCommand:
    def test_a_package_is_part_of_one_argument_and_no_pattern(self) -> None:
        words = debiantree.command(PLAN, Path("/tree"), 20)
        assert [word for word in words if "nginx" in word] == [
            f"--include={','.join((*debiantree.PACKAGES, 'nginx', 'g++'))}"
        ]
        assert '--aptopt=APT::Cmd::Pattern-Only "true"' in words
        assert words[-3:] == ("bookworm", "/tree", *SOURCES)

    def test_an_archive_is_not_waited_for_without_end(self) -> None:
        words = debiantree.command(PLAN, Path("/tree"), 20)
        assert {'--aptopt=Acquire::http::Timeout "20"', '--aptopt=Acquire::Retries "1"'} <= set(words)


class TestFailure:
    @pytest.mark.parametrize(
        ("said", "reason"),
        [
            ("E: Unable to locate package ngingx", "the archive has no package 'ngingx'"),
            ("E: Package 'awk' has no installation candidate", "the archive has no package 'awk'"),
            ("E: Unable to correct problems, you have held …", "these packages cannot be installed together"),
        ],
    )
    def test_what_no_other_attempt_mends_is_told_by_its_cause(self, said: str, reason: str) -> None:
        told = debiantree.explained(Fault("`mmdebstrap` failed", log_tail=f"Reading lists…\n{said}\nE: setup failed\n"))
        assert (told.reason, told.retryable) == (reason, False)
        assert said in told.log_tail

    def test_anything_else_may_be_mended_by_one(self) -> None:
        failed = Fault("`mmdebstrap` failed", log_tail="E: Failed to fetch http://a/  Connection failed")
        assert debiantree.explained(failed) is failed


class TestGuest:
    @staticmethod
    def files() -> dict[str, str]:
        return {path: data.decode() for path, data in guestfiles.files(SOURCES, "ROOT-UUID").items()}

    def test_the_machine_id_is_empty_and_there_are_no_host_keys(self) -> None:
        assert self.files()["etc/machine-id"] == ""
        assert not [path for path in self.files() if "ssh_host_" in path]

    def test_the_links_to_the_newest_kernel_are_booted_from_the_root_file_system(self) -> None:
        script = self.files()[guestfiles.BOOT_CONFIGURATION]
        for loading in ("linux /vmlinuz $", "initrd /initrd.img\n", "linux16 /vmlinuz $", "initrd16 /initrd.img\n"):
            assert f" {loading}" in script
        assert "root=UUID=ROOT-UUID" in script
        assert self.files()["etc/fstab"].split()[:2] == ["UUID=ROOT-UUID", "/"]

    def test_the_root_file_system_grows(self) -> None:
        assert "x-systemd.growfs" in self.files()["etc/fstab"]
        assert "Type=root" in self.files()["etc/repart.d/50-root.conf"]

    def test_a_guest_has_the_archives_that_its_build_had_and_without_any_those_of_mmdebstrap(self) -> None:
        own = (*SOURCES, "deb http://mirror.example/security bookworm-security main")
        for sources in (SOURCES, own):
            listed = guestfiles.files(sources, "")["etc/apt/sources.list"].decode()
            assert listed.splitlines() == list(sources)
        assert "etc/apt/sources.list" not in guestfiles.files((), "")

    def test_what_is_packed_is_of_root(self) -> None:
        packed = guestfiles.packed({"etc/hosts": b"::1 localhost\n"}, guestfiles.links())
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            found = {member.name: member for member in tar}
        assert {(member.uid, member.gid) for member in found.values()} == {(0, 0)}
        assert (found["etc/hosts"].size, found["etc/hosts"].mode) == (14, 0o644)
        assert found["etc/resolv.conf"].issym()


class TestDisk:
    def test_each_part_of_the_loader_knows_where_the_next_one_begins(self) -> None:
        sector, core = gptdisk.with_loader(BOOT_IMAGE, bytes(2000))
        assert len(sector) == 440  # what follows is the disk's signature and the protective partition
        assert struct.unpack_from("<Q", sector, 0x5C) == (2048,)
        assert struct.unpack_from("<Q", core, 500) == (2049,)
        assert (sector[:0x5C], core[512:]) == (BOOT_IMAGE[:0x5C], bytes(2000 - 512))

    def test_what_is_no_boot_loader_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"boot\.img"):
            gptdisk.with_loader(BOOT_IMAGE[:-1], bytes(2000))
        with pytest.raises(ValueError, match="there is room for 1048576"):
            gptdisk.with_loader(BOOT_IMAGE, bytes((1 << 20) + 1))

    def test_partitions_do_not_overlap_and_end_before_the_second_table(self) -> None:
        table = gptdisk.partitions("key", 512 << 20).decode()
        where = [
            [int(field.partition("=")[2]) for field in line.split(", ")[:2]]
            for line in table.splitlines()
            if "start=" in line
        ]
        ends = [start + size for start, size in where]
        assert all(end <= start for end, (start, _) in zip(ends, where[1:], strict=False))
        assert ends[-1] * 512 + (1 << 20) == gptdisk.disk_bytes(512 << 20)

    @pytest.mark.parametrize(
        ("used_mib", "inodes"), [(390, 20_000), (4000, 1_000_000), (20_000, 100_000), (900, 200_000)]
    )
    def test_the_root_file_system_has_room_for_all_files(self, used_mib: int, inodes: int) -> None:
        """A file that is not empty takes a block of 4 KiB, and so is in what is used."""
        root_mib = debiandisk.root_mib_for(used_mib)
        assert root_mib >= used_mib + 256
        assert (root_mib << 20) // debiandisk.inode_ratio_for(inodes, root_mib) > inodes


class TestKeptDisks:
    def test_one_is_on_the_disk_before_it_is_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "disk.qcow2").write_bytes(b"made")
        synced: list[bool] = []
        monkeypatch.setattr(os, "fsync", lambda _: synced.append((tmp_path / "kept/disk.qcow2").exists()))
        debianimage.put(tmp_path / "disk.qcow2", tmp_path / "kept")
        assert synced == [False]
        assert (tmp_path / "kept/disk.qcow2").read_bytes() == b"made"

    def test_what_goes_into_a_disk_is_in_its_key(self) -> None:
        keys = {
            debianimage.key_of(plan)
            for plan in (PLAN, Plan("trixie", SOURCES, PLAN.packages), Plan("bookworm", (), PLAN.packages),
                         Plan("bookworm", SOURCES, ("nginx",)))
        }  # fmt: skip
        assert len(keys) == 4

    def test_only_those_that_were_used_last_are_kept(self, tmp_path: Path) -> None:
        for age, name in enumerate(("new", "middle", "old")):
            (tmp_path / name).mkdir()
            os.utime(tmp_path / name, (1000 - age, 1000 - age))
        debianimage.keep_the_newest(tmp_path / "old")
        assert {path.name for path in tmp_path.iterdir()} == {"old", "new"}

    def test_a_disk_of_yesterday_lacks_the_updates_of_today(self, tmp_path: Path) -> None:
        (tmp_path / "disk.qcow2").touch()
        os.utime(tmp_path / "disk.qcow2", (1000, 1000))
        assert debianimage.is_fresh(tmp_path, 1000 + debianimage.KEPT_S - 1)
        assert not debianimage.is_fresh(tmp_path, 1000 + debianimage.KEPT_S)
        assert not debianimage.is_fresh(tmp_path, 999)
        assert not debianimage.is_fresh(tmp_path / "none", 1000)


class TestTelling:
    async def test_phases_are_told_at_once_and_packages_at_a_pace(self) -> None:
        told: list[str] = []
        teller = Teller(told.append)
        for line in (
            "I: running apt-get update...",
            "Get:1 http://mirror.example/debian bookworm InRelease [151 kB]",
            "I: downloading packages with apt...",
            "Get:7 http://mirror.example/debian bookworm/main amd64 libc6 amd64 2.36 [2759 kB]",
            "I: installing remaining packages inside the chroot...",
            "Unpacking openssh-server (1:9.2p1-2) ...",
            "anything else",
        ):
            teller.hear(line)
        assert told == ["fetching the package lists", "downloading packages", "installing the other packages"]
        teller.silent(20)
        assert told[-1] == "unpacking openssh-server: nothing new for 20 s"

    async def test_the_package_is_named_that_apt_is_at(self) -> None:
        for line, says in (
            ("Get:7 http://a/debian bookworm/main amd64 libc6 amd64 2.36 [2759 kB]", "downloading libc6"),
            ("Unpacking openssh-server (1:9.2p1-2) ...", "unpacking openssh-server"),
            ("Unpacking libc6:amd64 (2.36) ...", "unpacking libc6"),
            ("Setting up linux-image-6.1.0-57-cloud-amd64 (6.1) ...", "configuring linux-image-6.1.0-57-cloud-amd64"),
        ):
            told: list[str] = []
            Teller(told.append).hear(line)
            assert told == [says]

    async def test_a_program_that_is_silent_is_told_as_that(self, tmp_path: Path) -> None:
        told: list[float] = []
        lines: list[str] = []
        os.mkfifo(tmp_path / "more")

        def silent(seconds: float) -> None:
            told.append(seconds)
            if len(told) == 2:
                (tmp_path / "more").write_text("two\n")

        script = f"echo one; cat {tmp_path}/more"
        await follow("sh", "-c", script, hear=lines.append, silent=silent, silence_s=0.2)
        assert lines == ["one", "two"]
        assert told == [0.2, 0.4]
