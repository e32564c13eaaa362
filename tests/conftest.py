"""What holds for every test."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, and no clock: a test that passed passes again, however busy the machine is.
# `--hypothesis-profile=default` explores others.
# How quickly examples are drawn is no matter either: the machine may be busy.
settings.register_profile(
    "steady", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


class Traces(logging.Handler):
    """What is logged with a traceback, by us or by a task that nobody waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.told.append(self.format(record))


@pytest.fixture(autouse=True)
def no_tracebacks(request: pytest.FixtureRequest) -> Iterator[None]:
    """No client, no file and no state of the host makes a traceback, but where a test plants a mistake of ours."""
    traces = Traces()
    loggers = [logging.getLogger(name) for name in ("aetherscale", "asyncio")]
    for logger in loggers:
        logger.addHandler(traces)
    yield
    for logger in loggers:
        logger.removeHandler(traces)
    if request.node.get_closest_marker("our_mistake") is None:
        assert traces.told == []
