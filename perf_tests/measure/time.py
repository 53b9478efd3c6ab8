"""Rounds through pytest-benchmark's ``pedantic``, each beside a control round and the yardstick where there are.

All of these are timed by one clock, pytest-benchmark's (``--benchmark-timer``): ratios of unlike clocks mean nothing.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from perf_tests.machine.watch import Span

from .yardstick import Clock, Measure, Reading

# Seconds of wall time, and what pytest-benchmark times with unless another clock is asked for.
WALL_CLOCK: Clock = time.perf_counter


class Benchmark(Protocol):
    """The part of pytest-benchmark's fixture that the suite uses; ``_timer``, its clock, is not public there."""

    group: str | None
    extra_info: dict[str, Any]
    stats: Any
    has_error: bool
    disabled: bool
    _timer: Clock

    def pedantic(
        self,
        target: Callable[[], None],
        *,
        setup: Callable[[], None] | None = None,
        teardown: Callable[[], None] | None = None,
        rounds: int = 1,
        warmup_rounds: int = 0,
        iterations: int = 1,
    ) -> None:
        """Time ``target`` for ``rounds`` rounds, each between ``setup`` and ``teardown``."""


class Beside(NamedTuple):
    """What there is beside the rounds, in the order of ``stats.data``; empty where it was not asked for.

    ``control_seconds`` has a control round for each, ``readings`` one of the yardstick's. ``spans`` says when each
    round began and ended, with what was timed beside it.
    """

    control_seconds: list[float]
    readings: list[Reading]
    spans: list[Span]


def time_rounds(
    benchmark: Benchmark,
    run: Callable[[], None],
    rounds: int,
    *,
    warm_ups: int = 1,
    control: Callable[[], None] | None = None,
    control_after: bool = False,
    yardstick: Measure | None = None,
    between: Callable[[int], None] = lambda done: None,
) -> Beside:
    """Time ``run`` for ``rounds`` rounds after ``warm_ups`` more; the rounds are left in ``benchmark.stats``.

    ``run`` and ``control`` return when the device is done, so both ends of a round are synchronised. The control runs
    before each round, or after it with ``control_after``; ``yardstick`` is read between the two. ``between`` is told
    how many rounds are done, before each pair and outside of what is timed. The control is timed by the clock of
    ``benchmark``; ``yardstick`` must be, too.
    """
    control_seconds: list[float] = []
    readings: list[Reading] = []
    spans: list[Span] = []
    calls = 0
    begin = 0.0

    def time_control() -> None:
        if control is not None:
            control_seconds.append(seconds_of(control, benchmark._timer))

    def read_yardstick() -> None:
        if yardstick is not None:
            readings.append(yardstick())

    def prepare() -> None:
        nonlocal calls, begin
        between(max(0, calls - warm_ups))
        calls += 1
        begin = time.perf_counter()
        if not control_after:
            time_control()
            read_yardstick()

    def follow() -> None:
        if control_after:
            read_yardstick()
            time_control()
        spans.append(Span(begin, time.perf_counter()))

    benchmark.pedantic(run, setup=prepare, teardown=follow, rounds=rounds, warmup_rounds=warm_ups)
    # The warm-ups' calls come first, and are not kept. (A disabled benchmark calls setup once.)
    return Beside(control_seconds[-rounds:], readings[-rounds:], spans[-rounds:])


def seconds_of(run: Callable[[], object], clock: Clock = WALL_CLOCK) -> float:
    """How long one call takes."""
    start = clock()
    run()
    return clock() - start
