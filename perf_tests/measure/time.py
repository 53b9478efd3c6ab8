"""Rounds through pytest-benchmark's ``pedantic``, each beside a control round where there is a control."""

import time
from collections.abc import Callable
from typing import Any, Protocol


class Benchmark(Protocol):
    """The part of pytest-benchmark's fixture that the suite uses."""

    group: str | None
    extra_info: dict[str, Any]
    stats: Any
    has_error: bool
    disabled: bool

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


def time_rounds(
    benchmark: Benchmark,
    run: Callable[[], None],
    rounds: int,
    *,
    warm_ups: int = 1,
    control: Callable[[], None] | None = None,
    control_after: bool = False,
    between: Callable[[int], None] = lambda done: None,
) -> list[float] | None:
    """Time ``run`` for ``rounds`` rounds after ``warm_ups`` more; the rounds are left in ``benchmark.stats``.

    ``run`` and ``control`` return when the device is done, so both ends of a round are synchronised.
    ``between`` is told how many rounds are done, before each pair and outside of what is timed.

    Returns:
        The control's seconds, one right before each round in the order of ``stats.data``, or right after it with
        ``control_after``; ``None`` without a control.
    """
    control_seconds: list[float] = []
    calls = 0

    def time_control() -> None:
        if control is not None:
            control_seconds.append(seconds_of(control))

    def prepare() -> None:
        nonlocal calls
        between(max(0, calls - warm_ups))
        calls += 1
        if not control_after:
            time_control()

    def follow() -> None:
        if control_after:
            time_control()

    benchmark.pedantic(run, setup=prepare, teardown=follow, rounds=rounds, warmup_rounds=warm_ups)
    # The warm-ups' calls come first, and are not kept. (A disabled benchmark calls setup once.)
    return control_seconds[-rounds:] if control is not None else None


def seconds_of(run: Callable[[], None]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
