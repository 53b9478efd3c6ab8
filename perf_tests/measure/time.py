"""Rounds through pytest-benchmark's ``pedantic``, each after a control round where there is a control."""

import time
from collections.abc import Callable
from typing import Any, Protocol

CONTROL_WARMUPS = 1


class Benchmark(Protocol):
    """The part of pytest-benchmark's fixture that the suite uses."""

    group: str | None
    extra_info: dict[str, Any]
    stats: Any
    has_error: bool

    def pedantic(
        self,
        target: Callable[[], None],
        *,
        setup: Callable[[], None] | None = None,
        rounds: int = 1,
        warmup_rounds: int = 0,
        iterations: int = 1,
    ) -> None:
        """Time ``target`` for ``rounds`` rounds, each after ``setup``."""


def time_rounds(
    benchmark: Benchmark,
    run: Callable[[], None],
    rounds: int,
    *,
    control: Callable[[], None] | None = None,
    between: Callable[[int], None] = lambda done: None,
) -> list[float] | None:
    """Time ``run`` for ``rounds`` rounds after a warm-up; the rounds are left in ``benchmark.stats``.

    ``run`` and ``control`` return when the device is done, so both ends of a round are synchronised.
    ``between`` is told how many rounds are done, before each control and outside of what is timed.

    Returns:
        The control's seconds, one before each round in the order of ``stats.data``; ``None`` without a
        control.
    """
    control_seconds: list[float] = []
    calls = 0

    def prepare() -> None:
        nonlocal calls
        between(max(0, calls - CONTROL_WARMUPS))
        calls += 1
        if control is not None:
            start = time.perf_counter()
            control()
            control_seconds.append(time.perf_counter() - start)

    benchmark.pedantic(run, setup=prepare, rounds=rounds, warmup_rounds=CONTROL_WARMUPS)
    # The warm-up's calls come first, and are not kept. (A disabled benchmark calls setup once.)
    return control_seconds[-rounds:] if control is not None else None
