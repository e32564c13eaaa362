"""Whatever qcow2 header is taken here, QEMU opens: the two must not understand the format differently."""

from __future__ import annotations

import itertools
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale.actors.images.files.header import ImageRejected, inspect
from tests.support.qcow2 import BACKING_FORMAT, BITMAPS, CLUSTER, FIELDS, qcow2_image, with_extension

pytestmark = pytest.mark.integration

INTERESTING = (
    *(0, 1, 2, 3, 4, 6, 7, 8, 9, 15, 16, 21, 31, 104, 105, 112, 120, 512, CLUSTER - 8, CLUSTER, CLUSTER + 8),
    *(2 * CLUSTER, 3 * CLUSTER, 4 * CLUSTER, 1 << 30, (1 << 30) + 512, (1 << 31), (1 << 32) - 1),
)
WIDE = (*INTERESTING, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - CLUSTER, (1 << 64) - 1)
WIDE_FIELDS = (
    *("backing_offset", "virtual_size", "l1_offset", "table_offset", "snapshots_offset", "incompatible"),
    *("compatible", "autoclear"),
)
NARROW_FIELDS = tuple(name for name in FIELDS if name not in (*WIDE_FIELDS, "magic"))
END = 0


def single_changes() -> Iterator[bytearray]:
    for name in NARROW_FIELDS:
        yield from (qcow2_image(**{name: value}) for value in INTERESTING)
    for name in WIDE_FIELDS:
        yield from (qcow2_image(**{name: value}) for value in WIDE)
        yield from (qcow2_image(**{name: 1 << bit}) for bit in range(64))


def compressions() -> Iterator[bytearray]:
    for bit, kind, header_bytes in itertools.product((0, 8), (0, 1, 2, 255), (104, 112, 120)):
        image = qcow2_image(incompatible=bit, header_bytes=header_bytes)
        image[104] = kind
        yield image


def extensions() -> Iterator[bytearray]:
    """Known and unknown kinds, of every length up to some, full of zeros and of others, and up to the cluster's end."""
    kinds = (BITMAPS, BACKING_FORMAT, 0x6803F857, 0x0537BE77, 0x44415441, 0x12345678, 1)
    for kind, autoclear, version in itertools.product(kinds, (0, 1), (2, 3)):
        start = 72 if version == 2 else 104
        header = {} if version == 3 else {"refcount_order": 0, "header_bytes": 0}
        most = CLUSTER - start - 8
        for length, byte in itertools.product((*range(40), most - 1, most, most + 1, (1 << 32) - 1), (0, 1, 255)):
            image = qcow2_image(version=version, autoclear=autoclear, **header)
            data = bytes([byte]) * (length if length < 40 else 0)
            with_extension(image, kind, data, length=length, offset=start)
            behind = start + 8 + (length + 7) // 8 * 8
            if length < 40:
                with_extension(image, END, b"", offset=behind)
            yield image


def mixtures(count: int) -> Iterator[bytearray]:
    """Several changes at once, always the same ones."""
    chosen = random.Random(20)  # noqa: S311 - no secret is made of it
    for _ in range(count):
        changes = {}
        for name in chosen.sample(list(FIELDS)[1:], chosen.choice((1, 2, 2, 3))):
            value = chosen.choice(WIDE) if name in WIDE_FIELDS else chosen.choice(INTERESTING)
            changes[name] = chosen.choice((value, 1 << chosen.randrange(64 if name in WIDE_FIELDS else 32)))
        image = qcow2_image(**changes)
        if chosen.random() < 0.5:
            kind = chosen.choice((BITMAPS, BACKING_FORMAT, 0x6803F857, chosen.randrange(1 << 32)))
            with_extension(image, kind, chosen.randbytes(chosen.randrange(40)), offset=chosen.choice((72, 104, 112)))
        if chosen.random() < 0.3:
            struct.pack_into(">Q", image, chosen.randrange(0, 104, 8), chosen.choice(WIDE))
        yield image


def refused_by_qemu(images: list[Path], directory: Path) -> list[str]:
    """Those that a real QEMU does not open for reading, by name, with what it says."""
    script = directory / "script"
    script.write_text("".join(f"open -r -o driver=qcow2 {image}\nread -q 0 512\nclose\n" for image in images))
    with script.open() as said:
        done = subprocess.run(["qemu-io"], stdin=said, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if "can't open" in line or "rror" in line or "no file open" in line]


@pytest.mark.parametrize("make", [single_changes, compressions, extensions, lambda: mixtures(6000)])
def test_qemu_opens_what_is_taken(tmp_path: Path, make: object) -> None:
    assert callable(make)
    taken: list[Path] = []
    seen: set[bytes] = set()
    candidate = tmp_path / "candidate"
    for number, image in enumerate(make()):
        if (content := bytes(image)) in seen:
            continue
        seen.add(content)
        candidate.write_bytes(content)
        try:
            inspect(candidate)
        except ImageRejected:
            continue
        taken.append(candidate.rename(tmp_path / f"image-{number}"))
    assert len(taken) >= 3, "some are good"
    assert refused_by_qemu(taken, tmp_path) == []


def test_the_judge_sees_what_qemu_refuses(tmp_path: Path) -> None:
    """Else the other test would be empty."""
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.write_bytes(qcow2_image(autoclear=2))
    good.write_bytes(qcow2_image())
    assert refused_by_qemu([good], tmp_path) == []
    assert any("bad" in line for line in refused_by_qemu([good, bad, good], tmp_path))
