"""The benchmarks compare fairly: turns rotate, the first round counts for nothing, ratios are of one round."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from xml.etree import ElementTree

import pytest

from aetherscale.bus.endpoint import Endpoint
from benchmarks import growth, libvirt, loops, report, rows, svg
from benchmarks.__main__ import parse
from benchmarks.harness import (
    OURS,
    Context,
    Row,
    Samples,
    Taken,
    Target,
    Turn,
    judge,
    outcome,
    percentile,
    take,
)
from benchmarks.wire import Messages, Wire, refuse_error


class Scripted:
    """Contestants who say what they are told to, and remember whose turn it was."""

    def __init__(self, **values: Sequence[float]) -> None:
        self.order: list[str] = []
        self._values = {name: iter(each) for name, each in values.items()}

    def turns(self) -> Mapping[str, Turn]:
        return {name: self._turn(name) for name in self._values}

    def _turn(self, name: str) -> Turn:
        async def turn() -> Samples:
            self.order.append(name)
            return {"ms": [next(self._values[name])]}

        return turn


def a_row(*targets: Target, peers: tuple[str, ...] = ()) -> Row:
    def nothing(_: Context) -> AbstractAsyncContextManager[Mapping[str, Turn]]:
        return nullcontext({})

    return Row("some", "something", nothing, targets, note="A note.", peers=peers)


def rounds(ours: Sequence[float], floor: Sequence[float]) -> list[dict[str, Samples]]:
    return [{OURS: {"ms": [a]}, "floor": {"ms": [b]}} for a, b in zip(ours, floor, strict=True)]


async def test_each_round_begins_with_another_contestant() -> None:
    scripted = Scripted(ours=[1] * 4, floor=[1] * 4, peer=[1] * 4)
    await take(scripted.turns(), rounds=3)
    assert scripted.order == [
        *("ours", "floor", "peer"),
        *("floor", "peer", "ours"),
        *("peer", "ours", "floor"),
        *("ours", "floor", "peer"),
    ]


async def test_the_first_round_counts_for_nothing() -> None:
    scripted = Scripted(ours=[1000, 1, 2], floor=[1000, 3, 4])
    taken = await take(scripted.turns(), rounds=2)
    assert [measured[OURS]["ms"] for measured in taken.rounds] == [[1], [2]]
    found = outcome(a_row(), taken)
    assert max(figure.p99 for figure in found.figures) == 4


async def test_the_spin_loop_runs_before_every_turn_that_counts() -> None:
    scripted = Scripted(ours=[1] * 3, floor=[1] * 3)
    taken = await take(scripted.turns(), rounds=2)
    assert len(taken.spins_ms) == 4


def test_a_ratio_is_that_of_two_figures_of_one_round() -> None:
    # The machine was ten times slower in the second round: the ratio of the medians would be 1, or anything.
    verdict = judge(Target("ms", "<=", 2, "floor"), rounds([2, 20, 3], [1, 10, 1.5]))
    assert (verdict.measured.low, verdict.measured.median, verdict.measured.high) == (2, 2, 2)
    assert verdict.met


def test_ratios_of_rounds_differ_from_the_ratio_of_medians() -> None:
    verdict = judge(Target("ms", "<=", 1, "floor"), rounds([1, 10, 100], [100, 1, 10]))
    assert verdict.measured.median == 10
    assert not verdict.met


def test_a_floor_of_another_figure_can_be_the_measure() -> None:
    measured: list[dict[str, Samples]] = [{OURS: {"ms": [6]}, "floor": {"p50 ms": [3]}}]
    verdict = judge(Target("ms", "<=", 2, "floor", "p50 ms"), measured)
    assert verdict.met
    assert verdict.limit == "≤ 2 × floor p50 ms"


def test_how_much_more_is_a_difference_in_one_round() -> None:
    verdict = judge(Target("ms", "<=", 15, "floor", more=True), rounds([57, 157, 60], [42, 142, 40]))
    assert (verdict.measured.low, verdict.measured.median, verdict.measured.high) == (15, 15, 20)
    assert verdict.met
    assert verdict.limit == "≤ 15 more than floor"


def test_a_peer_that_is_not_installed_is_told_and_not_held_against_anybody() -> None:
    row = a_row(Target("ms", "<=", 1, "floor"), Target("ms", "<=", 1, "libvirt"), peers=("libvirt",))
    found = outcome(row, Taken(rounds([2, 2], [1, 1]), [1.0, 2.0]))
    assert [verdict.limit for verdict in found.verdicts] == ["≤ 1 × floor"]
    assert found.note == "A note. libvirt is not installed here: no figures of it."


def test_a_peer_that_is_there_is_held_against_us() -> None:
    row = a_row(Target("ms", "<=", 1, "floor"), peers=("floor",))
    found = outcome(row, Taken(rounds([2, 2], [1, 1]), [1.0, 2.0]))
    assert [verdict.met for verdict in found.verdicts] == [False]
    assert found.note == "A note."


def test_a_floor_that_is_missing_is_a_mistake_not_a_peer_that_is_not_installed() -> None:
    with pytest.raises(KeyError):
        outcome(a_row(Target("ms", "<=", 1, "ceiling")), Taken(rounds([2], [1]), [1.0]))


async def test_libvirt_takes_no_turn_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt, "python", lambda: None)
    async with libvirt.beside("create", times=1) as turns:
        assert turns == {}


def test_rows_that_compare_with_libvirt_name_it_as_a_peer() -> None:
    for row in rows.ROWS:
        assert set(row.peers) >= {target.versus for target in row.targets} & {libvirt.NAME}, row.name


@pytest.mark.parametrize("cut", range(1, 60))
def test_messages_are_found_wherever_the_stream_is_cut(cut: int) -> None:
    stream = b"PING\r\nMSG a 1 0\r\n\r\nHMSG b 1 12 15\r\nNATS/1.0\r\n\r\n{}\n\r\nMSG c.d 1 4\r\n\r\n\r\n\r\n"
    said = Messages()
    found = said.take(stream[:cut]) + said.take(stream[cut:])
    assert found == [("a", b""), ("b", b"NATS/1.0\r\n\r\n{}\n"), ("c.d", b"\r\n\r\n")]
    assert said.pings == 1


def test_a_ping_after_the_end_of_a_reply_is_answered_and_hides_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def serve() -> bytes:
            server, _ = listener.accept()
            server.settimeout(10)
            with server, server.makefile("rb") as said:
                server.sendall(b"INFO {}\r\n")
                greeting = [said.readline() for _ in range(3)]
                inbox = greeting[1].split()[1].removesuffix(b".*") + b".1"
                server.sendall(b"PONG\r\n")
                asked = [said.readline() for _ in range(2)]
                assert asked[0] == b"PUB a " + inbox + b" 2\r\n"
                server.sendall(b"MSG " + inbox + b" 1 2\r\n{}\r\nMSG " + inbox + b" 1 0\r\n\r\nPING\r\n")
                return said.readline()

        answer = pool.submit(serve)
        wire = Wire(Endpoint(f"nats://127.0.0.1:{listener.getsockname()[1]}", "", ""))
        assert b"{}" in wire.ask("a", b"{}")
        assert answer.result() == b"PONG\r\n"
        wire.close()


def test_what_failed_is_not_measured() -> None:
    refuse_error(b'{"type":"result"}')
    with pytest.raises(RuntimeError, match="no such image"):
        refuse_error(b'{"type":"error","message":"no such image"}')


def test_a_node_that_is_to_run_on_asyncio_does_not_find_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(loops.VARIABLE, loops.ASYNCIO)
    assert loops.name() == loops.ASYNCIO
    assert loops.WITHOUT_UVLOOP in loops.program()[1]
    monkeypatch.setenv(loops.VARIABLE, loops.UVLOOP)
    assert loops.WITHOUT_UVLOOP not in loops.program()[1]


@pytest.mark.parametrize("words", [["never-heard-of"], ["--rounds", "0"], ["--loop", "trio"]])
def test_what_cannot_be_measured_is_refused_before_anything_is(words: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        parse(words)
    assert refusal.value.code == 2


def grown(**changes: float) -> dict[str, growth.Found]:
    """Everything stays the same from size to size, but for figures that grow with the powers given."""
    figures = {law.figure for law in growth.LAWS}
    sizes = (10, 100, 1000)
    found = {size: {name: 7.0 * float(size) ** changes.get(name, 0.0) for name in figures} for size in sizes}
    return {"vms": found, "events": found}


def test_a_slope_is_the_power_with_which_values_grow() -> None:
    assert svg.slope((10, 3), (100, 30)) == pytest.approx(1)
    assert svg.slope((10, 3), (1000, 3)) == 0


def bent(at_10: float, at_100: float, at_1000: float) -> dict[str, growth.Found]:
    """The start and the list as given, the rest as it was."""
    found = grown()
    for size, value in ((10, at_10), (100, at_100), (1000, at_1000)):
        found["vms"][size] |= {"list ms": value, "create ms": value}
    return found


def test_fixed_costs_do_not_hide_what_grows_faster_than_it_shows() -> None:
    text = growth.table(bent(100, 100, 10_000))
    assert "| vms | list ms | 2.00 | 1.1 | **broken** |" in text


def test_the_noise_of_two_neighbours_is_no_growth_of_what_may_not_grow() -> None:
    assert "| vms | create ms | 0.00 | 0.15 | kept |" in growth.table(bent(6, 3, 6))


def test_what_stays_the_same_keeps_every_law() -> None:
    assert "broken" not in growth.table(grown())


def test_a_create_that_grows_with_what_is_known_breaks_the_law() -> None:
    text = growth.table(grown(**{"create ms": 0.5}))
    assert "| vms | create ms | 0.50 | 0.15 | **broken** |" in text
    assert "| events | create ms | 0.50 | 0.15 | **broken** |" in text
    assert text.count("broken") == 2


def test_a_list_may_grow_with_what_it_shows_but_not_faster() -> None:
    assert "| vms | list ms | 1.00 | 1.1 | kept |" in growth.table(grown(**{"list ms": 1.0}))
    assert "| vms | list ms | 2.00 | 1.1 | **broken** |" in growth.table(grown(**{"list ms": 2.0}))


@pytest.mark.parametrize(("bound", "met"), [("<=", False), (">=", True)])
def test_an_absolute_target_is_held_against_our_own_figure(bound: str, met: bool) -> None:
    target = Target("ms", "<=" if bound == "<=" else ">=", 4)
    assert judge(target, rounds([5, 5, 5], [1, 1, 1])).met is met


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (25, 50, 99, 100)] == [25, 50, 99, 100]
    assert percentile([7.0], 99) == 7


def test_a_missed_target_stands_out_in_the_table() -> None:
    row = a_row(Target("ms", "<=", 1, "floor"), Target("ms", "<=", 3, "floor"))
    text = report.table([outcome(row, Taken(rounds([2, 2], [1, 1]), [1.0, 2.0]))])
    assert "| ms ≤ 1 × floor | 2 (2 to 2) | **missed** |" in text
    assert "| ms ≤ 3 × floor | 2 (2 to 2) | met |" in text


def test_what_was_saved_is_told_again_in_one_table(tmp_path: Path) -> None:
    row = a_row(Target("ms", "<=", 1, "floor"))
    report.save([outcome(row, Taken(rounds([2, 2], [1, 1]), [1.0, 2.0]))], tmp_path)
    text = report.summary(report.load(["never-measured", "some"], tmp_path))
    assert text.splitlines()[2:] == ["| something | ms ≤ 1 × floor | 2 | 2 (2 to 2) | **missed** |"]


def test_a_plot_has_its_points_inside_of_its_axes() -> None:
    text = svg.plot("<a & b>", "x", "y", {"line": [(10, 0.5), (3000, 70)]})
    picture = ElementTree.fromstring(text)  # noqa: S314 - our own
    places = [
        (float(c.get("cx", "")), float(c.get("cy", ""))) for c in picture.iter("{http://www.w3.org/2000/svg}circle")
    ]
    assert len(places) == 2
    assert all(svg.LEFT <= x <= svg.WIDTH - svg.RIGHT and svg.TOP <= y <= svg.HEIGHT - svg.BOTTOM for x, y in places)
    assert places[0][0] < places[1][0]
    assert places[0][1] > places[1][1]
