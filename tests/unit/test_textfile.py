"""Files of text that somebody has named: a pipe is read to its end, and nothing is waited for in vain."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from aetherscale import textfile
from aetherscale.textfile import Unreadable, read_text


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return str(path)


def test_a_fifo_that_nobody_writes_to_is_not_waited_for_for_ever(fifo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfile, "WRITER_S", 0.05)
    with pytest.raises(Unreadable, match="cannot be read: it is a FIFO, and no program writes to it"):
        read_text(fifo, 10)


def test_a_pipe_is_read_to_its_end_however_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the shell's `<(command)`: a writer has it open, writes in pieces, and takes its time."""
    monkeypatch.setattr(textfile, "WRITER_S", 0.0)  # a writer that is there is waited for
    reading, writing = os.pipe()
    has_begun = threading.Event()

    def write() -> None:
        has_begun.wait()
        for piece in (b"#!/bin/sh\n", b"echo ", b"\xc3", b"\xa4\n"):
            os.write(writing, piece)
        os.close(writing)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        threading.Timer(0.05, has_begun.set).start()
        assert read_text(f"/dev/fd/{reading}", 100) == "#!/bin/sh\necho ä\n"
    finally:
        has_begun.set()
        writer.join()
        os.close(reading)


def test_a_writer_that_comes_late_is_waited_for(fifo: str) -> None:
    writer = threading.Thread(target=lambda: Path(fifo).write_bytes(b"text"))
    writer.start()  # its open(2) waits for a reader, and ours for a writer
    try:
        assert read_text(fifo, 4) == "text"
    finally:
        writer.join()


def test_a_pipe_that_ends_without_a_word_is_empty() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    try:
        assert read_text(f"/dev/fd/{reading}", 10) == ""
    finally:
        os.close(reading)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/dev/zero", "is too large: expected at most 10 bytes of text"),
        ("/", "cannot be read: Is a directory"),
        ("/no/such/file", "cannot be read: No such file or directory"),
        ("/a\0b", "cannot be read: no file has such a name"),
    ],
)
def test_what_cannot_be_taken_is_said(path: str, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        read_text(path, 10)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero"])
def test_what_is_read_again_and_again_is_a_regular_file(path: str, fifo: str) -> None:
    for each in (path, fifo):
        with pytest.raises(Unreadable, match="is no regular file"):
            read_text(each, 10, regular=True)


def test_a_file_is_read_up_to_its_bound_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\xef\xbb\xbfa\r\n")
    assert read_text(str(file), 6).encode() == file.read_bytes()
    with pytest.raises(Unreadable, match="is too large"):
        read_text(str(file), 5)
