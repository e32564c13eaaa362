"""What an image says of itself: read from real file systems, in every form that it may have, and never guessed."""

from __future__ import annotations

import gzip
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from aetherscale.actors.images.building.programs import search_path
from aetherscale.actors.images.files import disk as disks
from aetherscale.actors.images.files.contents import ImageContents, look_into
from tests.support import looked_into
from tests.support.looked_into import CLOUD, FIRST_BYTES, MIB, SYSTEM, as_qcow2

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("mke2fs", path=search_path()) is None, reason="no e2fsprogs"),
]

WHOLE = {
    "os": "Debian GNU/Linux 12 (bookworm)",
    "os_id": "debian 12",
    "systemd": "252",
    "cloud_init": "yes",
    "agent": "yes",
    "default_user": "debian",
    "first_boot": "cloud-init",
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return looked_into.disk(tmp_path_factory.mktemp("whole"), SYSTEM)


def told(found: ImageContents) -> dict[str, Any]:
    return {name: getattr(found, name) for name in WHOLE}


def test_a_raw_image_says_what_is_in_it(image: Path) -> None:
    found = look_into(image)
    assert told(found) == WHOLE
    assert (found.format, found.virtual_size_bytes, found.file_systems) == ("raw", 64 * MIB, ["ext"])
    assert found.size_bytes == 64 * MIB
    assert found.allocated_bytes < 32 * MIB
    assert (found.refused, found.backing_file, found.packing) == (None, None, None)
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-c",),
        ("-c", "-o", "compression_type=zstd"),
        ("-o", "cluster_size=4k"),
        ("-o", "cluster_size=2M"),
        ("-o", "extended_l2=on"),
        ("-o", "compat=0.10"),
        ("-o", "preallocation=metadata"),
    ],
)
def test_a_qcow2_image_of_every_kind_says_the_same(image: Path, options: tuple[str, ...], tmp_path: Path) -> None:
    copy = tmp_path / "disk.raw"
    shutil.copy(image, copy)
    found = look_into(as_qcow2(copy, *options))
    assert told(found) == WHOLE
    assert (found.format, found.virtual_size_bytes) == ("qcow2", 64 * MIB)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("ext2", ()), ("ext3", ()), ("ext4", ("-b", "1024")), ("ext4", ("-b", "4096")), ("ext4", ("-O", "^64bit")),
     ("ext4", ("-O", "^extents,^64bit")), ("ext4", ("-I", "128"))],
)  # fmt: skip
def test_file_systems_of_every_age_are_read(tmp_path: Path, kind: str, options: tuple[str, ...]) -> None:
    many = {f"usr/lib/systemd/unit-{number}.service": "" for number in range(700)}
    assert told(look_into(looked_into.disk(tmp_path, SYSTEM | many, kind=kind, options=options))) == WHOLE


@pytest.mark.parametrize(
    ("without", "changed"),
    [
        ("usr/sbin/qemu-ga", {"agent": "no"}),
        ("usr/bin/cloud-init", {"cloud_init": "no", "default_user": "none", "first_boot": "credentials"}),
        ("etc/cloud/cloud.cfg", {"default_user": "unknown"}),
        ("usr/lib/systemd/systemd", {"systemd": "no"}),
        ("usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so", {"systemd": "unknown"}),
        ("usr/lib/os-release", dict.fromkeys(WHOLE, "unknown")),
    ],
)
def test_what_is_not_there_is_no_and_what_cannot_be_told_is_unknown(
    tmp_path: Path, without: str, changed: dict[str, str]
) -> None:
    files = {name: text for name, text in SYSTEM.items() if name != without}
    found = look_into(looked_into.disk(tmp_path, files))
    assert told(found) == WHOLE | changed
    assert (found.unread is None) == (found.os != "unknown"), "why it is not told is said, and nothing else"


@pytest.mark.parametrize(
    ("configured", "user"),
    [
        (CLOUD.replace("name: debian", 'name: "debian"   # ours'), "debian"),
        (CLOUD.replace("name: debian", "name: $(reboot)"), "unknown"),
        (CLOUD + CLOUD.replace("name: debian", "name: other"), "unknown"),
        (CLOUD.replace("     name: debian\n", "") + "name: other\n", "unknown"),
        ("default_user:\n" + " \n" * 100_000, "unknown"),
    ],
)
def test_a_default_user_is_told_only_where_it_is_plain(tmp_path: Path, configured: str, user: str) -> None:
    files = SYSTEM | {"etc/cloud/cloud.cfg": configured}
    assert look_into(looked_into.disk(tmp_path, files)).default_user == user


def test_systemd_that_takes_no_credentials_says_so(tmp_path: Path) -> None:
    files = {name.replace("252", "247"): text for name, text in SYSTEM.items() if name != "usr/bin/cloud-init"}
    found = look_into(looked_into.disk(tmp_path, files))
    assert (found.systemd, found.first_boot) == ("247", "none")


@pytest.mark.parametrize("switched_off", [True, False])
def test_cloud_init_is_named_as_the_way_where_it_is_the_real_one_and_runs(tmp_path: Path, switched_off: bool) -> None:
    real = "usr/bin/cloud-init"
    other = {"etc/cloud/cloud-init.disabled": ""} if switched_off else {"usr/bin/tiny-cloud": ""}
    files = {name: text for name, text in SYSTEM.items() if switched_off or name != real} | other
    found = look_into(looked_into.disk(tmp_path, files))
    assert (found.cloud_init, found.first_boot) == ("yes", "credentials")


def test_another_file_system_is_named_and_not_read(image: Path, tmp_path: Path) -> None:
    copy = tmp_path / "disk.raw"
    shutil.copy(image, copy)
    with copy.open("r+b") as file:
        file.seek(FIRST_BYTES)
        file.write(b"XFSB".ljust(4096, b"\0"))
    found = look_into(copy)
    assert (found.file_systems, told(found)) == (["xfs"], dict.fromkeys(WHOLE, "unknown"))
    assert found.unread == "its system is read from ext2, ext3 or ext4 alone, and what it has is: xfs"
    packed = tmp_path / "disk.gz"
    packed.write_bytes(gzip.compress(b"\0" * 512))
    assert look_into(packed).unread == "it is compressed with gzip"


def test_links_that_lead_round_end(tmp_path: Path) -> None:
    place = tmp_path / "tree"
    place.mkdir()
    (place / "usr").symlink_to("etc/a")
    (place / "etc").mkdir()
    (place / "etc/a").symlink_to("/usr")
    (place / "etc/os-release").symlink_to("../../../../usr/../usr")
    found = look_into(_of_tree(tmp_path, place))
    assert told(found) == dict.fromkeys(WHOLE, "unknown")


def _of_tree(place: Path, tree: Path) -> Path:
    image = place / "disk.raw"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    looked_into._run("mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(image))
    with image.open("r+b") as file:
        file.seek(510)
        file.write(b"\x55\xaa")
    return image


def test_a_thousand_damages_are_told_or_without_effect_and_cost_little(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a file system says, the look at it ends, within its budget, and names no secret."""
    whole = image.read_bytes()
    chosen = random.Random(7)  # noqa: S311 - damages, no secrets
    copy = tmp_path / "disk.raw"
    copy.write_bytes(whole)
    spots = [FIRST_BYTES + 1024 + chosen.randrange(1024) for _ in range(300)]
    used = [at for at in range(FIRST_BYTES, FIRST_BYTES + 8 * MIB, 512) if any(whole[at : at + 512])]
    spots += [chosen.choice(used) + chosen.randrange(512) for _ in range(700)]
    read: list[int] = []
    spend = disks.Disk._spend

    def spent(self: disks.Disk, length: int) -> None:
        read.append(length)
        spend(self, length)

    monkeypatch.setattr(disks.Disk, "_spend", spent)  # counts, and does the same
    with copy.open("r+b") as file:
        for spot in spots:
            read.clear()
            file.seek(spot)
            file.write(chosen.choice([b"\xff", b"\0", b"\x80", b"\xff\xff\xff\xff"]))
            file.flush()
            found = look_into(copy)
            assert "secret" not in repr(found)
            assert sum(read[:-1]) <= disks.MOST_READ_BYTES
            assert len(read) <= disks.MOST_READS + 1
            file.seek(spot)
            file.write(whole[spot : spot + 4])
            file.flush()


def test_a_file_that_cannot_be_imported_says_why_and_what_it_leads_to(tmp_path: Path) -> None:
    looked_into._run("qemu-img", "create", "-q", "-f", "qcow2", str(tmp_path / "base.qcow2"), "1G")
    looked_into._run(
        "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", str(tmp_path / "over.qcow2")
    )
    found = look_into(tmp_path / "over.qcow2")
    assert (found.format, found.backing_file) == ("qcow2", "base.qcow2")
    assert "backing file" in (found.refused or "")
    assert found.os == "unknown"


@pytest.mark.parametrize("kind", ["fifo", "directory", "link"])
def test_what_is_no_file_is_not_read(tmp_path: Path, image: Path, kind: str) -> None:
    place = tmp_path / "image"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to(image)
    with pytest.raises(OSError, match=r"regular file|Too many levels|directory"):
        look_into(place)
