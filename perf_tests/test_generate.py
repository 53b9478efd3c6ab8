"""The tables' cases: ``generate`` on one batch, per checkpoint, decoder layers, setting, implementation."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .cases import Case
    from .measure.time import Benchmark
    from .procedure import Procedure, Workspace
    from .subject import Stage

# A library's deprecation must not fail a measurement; the ordinary tests treat warnings as errors. Where nothing is
# timed, pytest-benchmark's fixture is not used, and says so.
pytestmark = pytest.mark.filterwarnings("default", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning")


def test_generate(
    case: "Case", workspace: "Workspace", stage: "Stage", procedure: "Procedure", benchmark: "Benchmark"
) -> None:
    """Memory, parity, counters and time of one case."""
    procedure.measure(case, workspace, stage, benchmark)
