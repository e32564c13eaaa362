"""The mapper of uids and who asks it, without a namespace: what is refused, and how long either waits."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale import uidmapper
from aetherscale.processes import mapped, users


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    "asked",
    [
        *(
            b"0\n",
            b"1000\n",
            b"-1\n",
            b"1e9\n",
            b"01879048192\n",
            b"1879048192",
            b"1879048192\nx",
            b"\n",
            b"",
            b"\xff\n",
        ),
        f"{users.UID_BASE - 1}\n".encode(),
        f"{users.UID_BASE + users.UID_COUNT}\n".encode(),
    ],
)
def test_no_number_but_a_vms_is_mapped(
    pair: tuple[socket.socket, socket.socket], asked: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uidmapper, "write_map", None)
    ours, theirs = pair
    theirs.sendall(asked)
    theirs.shutdown(socket.SHUT_WR)
    assert uidmapper.answer_to(ours) == "that is not the uid of a VM"


@pytest.mark.parametrize("uid", [users.UID_BASE, users.UID_BASE + users.UID_COUNT - 1])
def test_a_vms_uid_is_mapped_for_who_asks_and_nothing_else_is(
    pair: tuple[socket.socket, socket.socket], uid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, str, list[int]]] = []
    monkeypatch.setattr(uidmapper, "write_map", lambda *said: written.append(said))
    monkeypatch.setattr(uidmapper, "kvm_group", lambda: [108])
    ours, theirs = pair
    theirs.sendall(f"{uid}\n".encode())
    assert uidmapper.answer_to(ours) == "ok"
    assert written == [(os.getpid(), "uid", [uid]), (os.getpid(), "gid", [uid, 108])]


def test_another_user_is_refused(pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "is not the user of this service" in uidmapper.answer_to(pair[0])


def test_who_asks_nothing_is_let_go(pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uidmapper, "PATIENCE_S", 0.01)
    with pytest.raises(TimeoutError):
        uidmapper.answer_to(pair[0])


def test_a_mapper_that_does_not_answer_ends_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "PATIENCE_S", 0.01)
    address = str(tmp_path / "m.sock")
    assert "No such file" in mapped.main(address, "1879048192", "/bin/true")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        assert "timed out" in mapped.main(address, "1879048192", "/bin/true")
