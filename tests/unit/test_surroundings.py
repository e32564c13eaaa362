"""What the process was started with: streams that do not take anything, settings and files without end."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from aetherscale.__main__ import program
from aetherscale.bus.endpoint import FILE_NAME
from aetherscale.gateways.cli.client import Client
from aetherscale.gateways.cli.failures import Failure
from aetherscale.gateways.cli.files import MAX_TEXT_BYTES, lines_of, require_one_stdin, text_of
from aetherscale.gateways.cli.main import run
from aetherscale.gateways.cli.standard import REPLACED, Unwritable, _Stderr, _Stdout, _text, install
from aetherscale.kernel.errors import Refused
from aetherscale.settings import MAX_FILE_BYTES, Settings, load_settings


def test_a_file_of_text_is_read_up_to_its_bound(tmp_path: Path) -> None:
    file = tmp_path / "script"
    file.write_bytes(b"x" * MAX_TEXT_BYTES)
    assert len(text_of(str(file), "--init-script")) == MAX_TEXT_BYTES
    file.write_bytes(b"x" * (MAX_TEXT_BYTES + 1))
    for path, said in (
        (str(file), "too large"),
        ("/dev/zero", "too large"),
        ("/", "Is a directory"),
        ("/n", "No such"),
    ):
        with pytest.raises(Failure, match=said) as failure:
            text_of(path, "--init-script")
        assert failure.value.status == 2
        assert failure.value.message.startswith(f"--init-script: {path} ")
    file.write_bytes(b"\xff")
    with pytest.raises(Failure, match="it is not text in UTF-8"):
        text_of(str(file), "--init-script")
    file.write_text("#!/bin/sh\n", encoding="utf-16")
    with pytest.raises(Failure, match="it is not text in UTF-8") as failure:
        text_of(str(file), "--init-script")
    assert failure.value.hint == f"iconv -f UTF-16 -t UTF-8 {file}"


@pytest.mark.parametrize("closed", [False, True])
def test_a_dash_is_stdin_up_to_the_same_bound(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    given = io.TextIOWrapper(io.BytesIO(b"x" * MAX_TEXT_BYTES))
    monkeypatch.setattr(sys, "stdin", given)
    if closed:
        given.close()
        with pytest.raises(Failure, match="--init-script: stdin cannot be read: it is closed"):
            text_of("-", "--init-script")
        return
    assert len(text_of("-", "--init-script")) == MAX_TEXT_BYTES
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * (MAX_TEXT_BYTES + 1))))
    with pytest.raises(Failure, match="--init-script: stdin is too large: expected at most 128 KiB of text"):
        text_of("-", "--init-script")


def test_lines_of_a_file_have_neither_its_line_ends_nor_its_mark(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbfone \r\n\ttwo\nthree\r")
    assert lines_of(str(file), "--ssh-key") == ["one", "two", "three"]
    assert text_of(str(file), "--init-script").encode() == file.read_bytes(), "a script is not changed"


def test_stdin_is_read_for_one_option_alone() -> None:
    require_one_stdin([("--init-script", "-"), ("--ssh-key", "a"), ("--ssh-key", "./-")])
    with pytest.raises(Failure, match="--init-script and --ssh-key: got - for each") as failure:
        require_one_stdin([("--init-script", "-"), ("--ssh-key", "a"), ("--ssh-key", "-")])
    assert failure.value.status == 2


def test_a_file_of_settings_is_read_up_to_its_bound(tmp_path: Path) -> None:
    file = tmp_path / "aetherscale.toml"
    file.write_bytes(b"#" * MAX_FILE_BYTES)
    assert load_settings({"config": str(file)}, {}).tenant == "default"
    file.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    for path in (str(file), "/dev/zero"):
        with pytest.raises(Refused, match="is too large"):
            load_settings({"config": path}, {})
    file.write_bytes(b'\xef\xbb\xbftenant = "one"\r\n')
    assert load_settings({"config": str(file)}, {}).tenant == "one", "as an editor of Windows writes it"
    file.write_text("a = " + "[" * 50_000)
    with pytest.raises(Refused, match="is nested too deeply"):
        load_settings({"config": str(file)}, {})


def test_a_state_directory_is_a_path_in_utf8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="expected UTF-8"):
        load_settings({"state-dir": "/x\udcff"}, {})
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
    with pytest.raises(Refused, match="expected a path in UTF-8"):
        load_settings({}, {"HOME": "/x\udcff"})
    assert load_settings({}, {}).state_dir == Path("/.local/state/aetherscale"), "a user that nobody knows"
    assert load_settings({}, {"HOME": "relative"}).state_dir == Path("/.local/state/aetherscale")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(Refused, match="the working directory is gone"):
        load_settings({"state-dir": "s"}, {})
    assert load_settings({"state-dir": "/s"}, {}).state_dir == Path("/s")
    monkeypatch.chdir("/")


def test_what_stdout_does_not_take_is_told_once() -> None:
    with Path("/dev/full").open("wb") as full:
        stream = _text(_Stdout(full.fileno(), "w", closefd=False), None)
        stream.write("x")
        with pytest.raises(Unwritable, match="stdout cannot be written: No space left on device") as told:
            stream.flush()
        assert told.value.errno == errno.ENOSPC
        stream.write("y")
        stream.flush()
        stream.detach()


def test_what_stderr_does_not_take_is_lost() -> None:
    with Path("/dev/full").open("wb") as full:
        stream = _text(_Stderr(full.fileno(), "w", closefd=False), None)
        print("x" * 100_000, file=stream, flush=True)
        stream.detach()


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    stream = _text(_Stdout(writer, "w", closefd=True), None)
    child = os.fork()
    if child == 0:
        os.close(writer)
        taken = 0
        while data := os.read(reader, 4096):
            taken += len(data)
        os._exit(0 if taken == 1_000_000 else 1)
    os.close(reader)
    stream.write("x" * 1_000_000)
    stream.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("text", "written"),
    [("done → …", b"done -> ..."), ("caf\udce9", b"caf\\xe9"), ("name \u4e2d", b"name ?"), ("plain", b"plain")],
)
def test_what_an_encoding_does_not_have_is_replaced(text: str, written: bytes) -> None:
    install()
    assert text.encode("ascii", REPLACED) == written


def test_a_fault_of_ours_is_a_sentence_with_where_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("oh")

    monkeypatch.setattr("aetherscale.settings.load_settings", broken)
    assert run(["vm", "list"], program()) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: aetherscale: this is a fault of aetherscale itself: KeyError: 'oh' (")
    assert "context.py:" in error
    monkeypatch.setenv("AETHERSCALE_DEBUG", "1")
    with pytest.raises(KeyError):
        run(["vm", "list"], program())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff", "nats.json"),
        (b"[]", "nats.json"),
        (b'{"url": "ftp://h"}', "expected nats://"),
        (None, "Is a directory"),
    ],
)
def test_an_address_that_is_none_is_told_with_its_file(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is None:
        (tmp_path / FILE_NAME).mkdir()
    else:
        (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(Failure, match=said) as failure:
        _ = Client(Settings(tmp_path, "n"), program()).connection
    assert failure.value.status == 4
    assert str(tmp_path) in failure.value.message


def test_a_file_as_state_directory_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match="file is not a directory"):
        _ = Client(Settings(tmp_path / "file", "n"), program()).connection


def test_an_interrupt_while_something_is_imported_has_no_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import signal

    from aetherscale import __main__ as entry

    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "aetherscale.gateways.cli.vm":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "aetherscale.gateways.cli.vm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    monkeypatch.setattr(sys, "argv", ["aetherscale", "vm", "list"])
    before = signal.getsignal(signal.SIGINT)
    try:
        assert entry.main() == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr() == ("", "")
