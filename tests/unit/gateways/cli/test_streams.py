"""The program's own pipes, as real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from aetherscale.gateways.cli import streams
from aetherscale.gateways.cli.failures import Failure

WAIT_S = 30.0


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> int:
    reading, writing = os.pipe()
    monkeypatch.setattr(streams, "STDIN", reading)
    return writing


@pytest.mark.parametrize("length", [0, 1, 100])
def test_stdin_is_read_to_its_end_up_to_a_bound(typing: int, length: int) -> None:
    os.write(typing, b"x" * length)
    os.close(typing)
    assert streams.whole_stdin(100, WAIT_S, asked_for=False) == b"x" * length


def test_a_byte_more_is_refused_before_anything_is_done(typing: int) -> None:
    os.write(typing, b"x" * 101)
    os.close(typing)
    with pytest.raises(Failure, match="more than 100 bytes") as failure:
        streams.whole_stdin(100, WAIT_S, asked_for=False)
    assert failure.value.status == 2


def test_a_stdin_that_does_not_end_is_not_waited_for_for_ever(typing: int) -> None:
    os.write(typing, b"x")
    with pytest.raises(Failure, match="has not ended within") as failure:
        streams.whole_stdin(100, 0.01, asked_for=False)
    with pytest.raises(Failure, match="has not ended within"):
        streams.whole_stdin(100, 0.01, asked_for=True)
    assert "< /dev/null" in failure.value.hint


def test_a_stdin_that_nobody_writes_to_is_left_alone(typing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FIRST_WORD_S", 0.0)
    assert streams.whole_stdin(100, WAIT_S, asked_for=False) is None
    os.close(typing)


def test_a_terminal_is_read_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    monkeypatch.setattr(streams, "STDIN", slave)
    os.write(master, b"hello\n\x04")
    assert streams.whole_stdin(100, WAIT_S, asked_for=False) == b""
    assert streams.whole_stdin(100, WAIT_S, asked_for=True) == b"hello\n"
    os.close(master)
    os.close(slave)


WAITS = """
import sys, time
from aetherscale.gateways.cli.streams import ends_with_its_reader
try:
    with ends_with_its_reader():
        print("watching", file=sys.stderr, flush=True)
        try:
            time.sleep(600)
        except OSError:
            sys.exit("taken for a lost connection")
except BrokenPipeError:
    sys.exit(7)
"""
WAITS_IN_A_LOOP = """
import asyncio, sys
from aetherscale.gateways.cli.streams import read_by_somebody
async def work():
    print("watching", file=sys.stderr, flush=True)
    try:
        await asyncio.sleep(600)
    except OSError:
        sys.exit("taken for a lost connection")
try:
    asyncio.run(read_by_somebody(work()))
except BrokenPipeError:
    sys.exit(7)
"""


@pytest.mark.parametrize("program", [WAITS, WAITS_IN_A_LOOP], ids=["alone", "in a loop"])
def test_the_end_of_the_reader_is_seen_by_who_has_nothing_to_write(program: str) -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert process.stderr is not None
    assert process.stderr.readline() == b"watching\n"
    os.close(reading)
    assert process.wait(WAIT_S) == 7
    process.stderr.close()


@pytest.mark.parametrize(
    "program",
    [
        WAITS.replace("time.sleep(600)", "print('done')"),
        WAITS_IN_A_LOOP.replace("asyncio.sleep(600)", "asyncio.sleep(0, print('done'))"),
    ],
    ids=["alone", "in a loop"],
)
def test_a_reader_that_stays_changes_nothing(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=WAIT_S)
    assert done.stdout == b"done\n"


def test_an_interrupt_of_a_loop_stays_one() -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITS_IN_A_LOOP], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline() == b"watching\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WAIT_S)
    assert b"KeyboardInterrupt" in err
