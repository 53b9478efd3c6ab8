import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from perf_tests.measure.time import time_rounds
from perf_tests.measure.yardstick import Reading
from tests.plugins.ticking_clock import tick


class FakeBenchmark:
    """Calls as `pedantic` does, timing nothing."""

    def __init__(self, timer: Callable[[], float] = time.perf_counter) -> None:
        self.calls: list[str] = []
        self._timer = timer

    def pedantic(
        self,
        target: Callable[[], None],
        *,
        setup: Callable[[], None],
        teardown: Callable[[], None],
        rounds: int,
        warmup_rounds: int,
    ) -> None:
        for _ in range(warmup_rounds + rounds):
            assert setup() is None
            assert target() is None
            assert teardown() is None


def test_every_round_follows_a_control_round() -> None:
    log: list[str] = []
    beside = time_rounds(FakeBenchmark(), lambda: log.append("run"), 3, control=lambda: log.append("control"))
    assert log == ["control", "run"] * 4
    assert len(beside.control_seconds) == 3
    assert beside.readings == []


@pytest.mark.parametrize("control_after", [False, True])
def test_the_yardstick_is_read_between_control_and_round(control_after: bool) -> None:
    log: list[str] = []
    readings = iter(Reading(float(number), 0.5) for number in range(100))

    def yardstick() -> Reading:
        log.append("yardstick")
        return next(readings)

    beside = time_rounds(
        FakeBenchmark(),
        lambda: log.append("run"),
        3,
        control=lambda: log.append("control"),
        control_after=control_after,
        yardstick=yardstick,
    )
    order = ["control", "yardstick", "run"]
    assert log == (order[::-1] if control_after else order) * 4
    # The first one is the warm-up's.
    assert beside.readings == [Reading(number, 0.5) for number in (1.0, 2.0, 3.0)]


def test_what_is_warm_needs_no_warm_up() -> None:
    log: list[str] = []
    run, control = (lambda: log.append("run")), (lambda: log.append("control"))
    seconds = time_rounds(FakeBenchmark(), run, 3, warm_ups=0, control=control).control_seconds
    assert log == ["control", "run"] * 3
    assert len(seconds) == 3


def test_the_control_may_come_after() -> None:
    log: list[str] = []
    delays = iter([0.2, 0.0, 0.0, 0.0])

    def control() -> None:
        log.append("control")
        time.sleep(next(delays))

    beside = time_rounds(FakeBenchmark(), lambda: log.append("run"), 3, control=control, control_after=True)
    assert log == ["run", "control"] * 4
    assert len(beside.control_seconds) == 3
    assert max(beside.control_seconds) < 0.1  # the warm-up's is not kept


def test_the_warm_ups_control_is_not_kept() -> None:
    delays = iter([0.2, 0.0, 0.0, 0.0])
    beside = time_rounds(FakeBenchmark(), lambda: None, 3, control=lambda: time.sleep(next(delays)))
    assert max(beside.control_seconds) < 0.1


def test_the_control_is_timed_by_the_clock_of_the_rounds() -> None:
    beside = time_rounds(FakeBenchmark(tick), lambda: None, 3, control=lambda: None)
    assert beside.control_seconds == [1.0] * 3


def test_without_a_control_there_is_none() -> None:
    beside = time_rounds(FakeBenchmark(), lambda: None, 3)
    assert beside.control_seconds == beside.readings == []


@pytest.mark.parametrize("control_after", [False, True])
def test_a_span_has_the_round_and_what_is_beside_it(control_after: bool) -> None:
    instants: list[float] = []

    def note() -> None:
        instants.append(time.perf_counter())

    spans = time_rounds(FakeBenchmark(), note, 3, control=note, control_after=control_after).spans
    assert len(spans) == 3
    of_rounds = [*zip(instants[2::2], instants[3::2], strict=True)]  # but the warm-up's
    for span, (first, second) in zip(spans, of_rounds, strict=True):
        assert span.begin <= first <= second <= span.end
    assert all(early.end <= late.begin for early, late in pairwise(spans))


def test_progress_counts_the_rounds_that_are_done() -> None:
    done: list[int] = []
    time_rounds(FakeBenchmark(), lambda: None, 3, between=done.append)
    assert done == [0, 0, 1, 2]


def test_the_timed_region_holds_the_target_alone(benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    def slow_reading() -> Reading:
        spend(5)
        return Reading(3, 2)

    monkeypatch.setattr(benchmark, "disabled", False)  # pytest-xdist disables it
    monkeypatch.setattr(benchmark, "_timer", lambda: now)
    beside = time_rounds(
        benchmark,
        lambda: spend(2),
        5,
        control=lambda: spend(7),
        yardstick=slow_reading,
        between=lambda done: spend(11),
    )
    assert benchmark.stats.stats.data == [2] * 5
    assert beside.control_seconds == [7] * 5
    assert beside.readings == [Reading(3, 2)] * 5
