"""The files of a resolver, its upstreams, and what is said where it cannot be."""

from __future__ import annotations

import os
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from aetherscale.actors.network.dnsmasq import process
from aetherscale.actors.network.dnsmasq.directory import LOG, RECORD, RECORD_LIMIT_BYTES, Directory, Record
from aetherscale.actors.network.dnsmasq.upstreams import host_upstreams
from aetherscale.kernel.fault import Fault

LAB = "0123456789abcdef"


def test_a_file_is_written_whole_and_only_where_it_changes(tmp_path: Path) -> None:
    directory = Directory(tmp_path, LAB)
    directory.make()
    directory.make()
    assert directory.write("names", "one\n")
    before = (directory.path / "names").stat()
    assert not directory.write("names", "one\n")
    assert (directory.path / "names").stat().st_ino == before.st_ino
    with (directory.path / "names").open() as reading:
        assert directory.write("names", "two\n")
        assert reading.read() == "one\n", "whoever reads it has the old one whole"
    assert (directory.path / "names").read_text() == "two\n"
    assert sorted(os.listdir(directory.path)) == ["names"]


def test_what_a_resolver_reads_others_may_and_what_is_on_record_they_may_not(tmp_path: Path) -> None:
    directory = Directory(tmp_path, LAB)
    directory.make()
    directory.write("names", "")
    directory.write_record(Record("boot", 7, 9, "print"))
    modes = [(directory.path / name).stat().st_mode & 0o777 for name in (".", "names", RECORD)]
    assert modes == [0o755, 0o644, 0o600]


WRONG = b'{"boot-id": "b", "pid": "7", "start-ticks": 9, "fingerprint": ""}'


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b'{"pid": 7}', b"\xff", WRONG, b" " * RECORD_LIMIT_BYTES + WRONG.replace(b'"7"', b"7")],
)
def test_a_record_that_is_none_is_none(tmp_path: Path, text: bytes) -> None:
    directory = Directory(tmp_path, LAB)
    assert directory.record() is None
    directory.make()
    directory.write_record(record := Record("boot", 7, 9, "print"))
    assert directory.record() == record
    (directory.path / RECORD).write_bytes(WRONG.replace(b'"7"', b"7"))
    assert directory.record() == Record("b", 7, 9, "")
    (directory.path / RECORD).write_bytes(text)
    assert directory.record() is None


def test_of_a_long_log_the_end_is_told(tmp_path: Path) -> None:
    directory = Directory(tmp_path, LAB)
    assert directory.log() == ""
    directory.make()
    (directory.path / LOG).write_text("x" * 5000 + "\nthe end\n")
    assert directory.log().endswith("x\nthe end")
    assert len(directory.log()) < 2100
    directory.remove()
    directory.remove()
    assert not directory.path.exists()


def test_the_servers_behind_a_stub_are_asked_where_there_is_one(tmp_path: Path) -> None:
    conf, behind = tmp_path / "resolv.conf", tmp_path / "behind.conf"
    assert host_upstreams(conf, behind) == []
    conf.write_text("nameserver 127.0.0.53\noptions edns0\n")
    assert host_upstreams(conf, behind) == []
    behind.write_text("nameserver 192.0.2.1\n")
    assert host_upstreams(conf, behind) == [IPv4Address("192.0.2.1")]
    conf.write_text("nameserver 192.0.2.2\n")
    assert host_upstreams(conf, behind) == [IPv4Address("192.0.2.2")], "without a stub it is the host's own that count"
    conf.write_text("nameserver 127.0.0.1\nnameserver 192.0.2.2\n")
    behind.unlink()
    assert host_upstreams(conf, behind) == [IPv4Address("192.0.2.2")]


async def test_without_dnsmasq_it_is_said_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Fault, match="dnsmasq is not installed") as fault:
        await process.start(Directory(tmp_path, LAB), "dnsmasq", "", lambda _: None)
    assert fault.value.remedy == "apt-get install --no-install-recommends dnsmasq-base"
    assert not fault.value.retryable


def test_a_fingerprint_tells_texts_apart() -> None:
    assert len({process.fingerprint(*texts) for texts in (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""))}) == 4
