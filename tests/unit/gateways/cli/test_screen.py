"""Writing beside everything else: in order, counted, and given up where nobody reads."""

from __future__ import annotations

import os
import select

from aetherscale.gateways.cli.screen import Screen

WAIT_MS = 30_000


def settled(screen: Screen) -> int:
    """What has been shown when there is no more to show."""
    shown, poll = 0, select.poll()
    poll.register(screen.fileno(), select.POLLIN)
    while not screen.is_idle():
        assert poll.poll(WAIT_MS), "no news"
        shown += screen.shown()
    return shown + screen.shown()


def test_what_is_shown_comes_out_in_its_order_and_is_counted_by_its_worth() -> None:
    reading, writing = os.pipe()
    screen = Screen(writing)
    for number in range(100):
        screen.show(b"%04d" % number, 7)
    assert settled(screen) == 700
    assert os.read(reading, 1000) == b"".join(b"%04d" % number for number in range(100))
    os.close(reading)
    os.close(writing)


def test_a_reader_that_takes_nothing_holds_up_nobody_and_what_waits_can_be_dropped() -> None:
    reading, writing = os.pipe()
    screen = Screen(writing)
    screen.show(b"x" * 1_000_000, 1)
    screen.show(b"never", 1)
    assert os.read(reading, 1) == b"x"  # it is at it
    assert screen.shown() == 0
    assert not screen.is_idle()
    screen.drop()
    while not screen.is_idle():
        # All may have been read a moment before the screen is idle.
        if reading in select.select([reading, screen.fileno()], (), (), WAIT_MS / 1000)[0]:
            assert b"never" not in os.read(reading, 65536)
    assert screen.shown() == 1
    os.close(reading)
    os.close(writing)


def test_the_end_of_the_reader_is_a_failure_that_is_news() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    screen = Screen(writing)
    screen.show(b"x", 1)
    poll = select.poll()
    poll.register(screen.fileno(), select.POLLIN)
    assert poll.poll(WAIT_MS)
    assert isinstance(screen.failure, BrokenPipeError)
    assert screen.is_idle()
    os.close(writing)


def test_a_descriptor_that_somebody_made_non_blocking_is_waited_for() -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    screen = Screen(writing)
    screen.show(b"x" * 200_000, 1)
    got = 0
    while got < 200_000:
        select.select([reading], (), (), WAIT_MS / 1000)
        got += len(os.read(reading, 65536))
    assert settled(screen) == 1
    os.close(reading)
    os.close(writing)
