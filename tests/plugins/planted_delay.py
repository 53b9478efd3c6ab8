"""pytest plugin: flash is slower by shares of its own time, `$PERF_PLANTED_DELAY` (`0.05`, or in turn `0,0.3`), in real
runs. Which round had which is in the saved run, under `planted_delays`.
"""

import os
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest

_shares = cycle([float(share) for share in os.environ["PERF_PLANTED_DELAY"].split(",")])
_planted: list[float] = []


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Not on import: the suite says how OpenMP's threads wait before it imports torch."""
    from perf_tests.subjects.subject import Subject

    Subject.run_round = with_delay(Subject.run_round)  # type: ignore[method-assign]


def with_delay(run_round: Callable[[Any], None]) -> Callable[[Any], None]:
    """The round, then a wait that is a share of it, as busy as the round was."""

    def run_round_and_wait(self: Any) -> None:
        start = time.perf_counter()
        run_round(self)
        if self.implementation == "flash":
            end = time.perf_counter()
            _planted.append(next(_shares))
            until = end + _planted[-1] * (end - start)
            while time.perf_counter() < until:
                pass

    return run_round_and_wait


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """The timed rounds come last."""
    rounds = sum(len(bench["stats"]["data"]) for bench in output_json["benchmarks"])
    output_json["planted_delays"] = _planted[-rounds:]
