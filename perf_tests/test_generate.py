"""The tables' cases: ``generate`` on one batch, per checkpoint, decoder layers, setting, implementation."""

from collections.abc import Callable

import pytest

# A library's deprecation must not fail a measurement; the ordinary tests treat warnings as errors. Where nothing is
# timed, pytest-benchmark's fixture is not used, and says so.
pytestmark = pytest.mark.filterwarnings("default", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning")


def test_generate(measure: Callable[[], None]) -> None:
    """Memory, parity, counters and time of one case."""
    measure()
