"""Forward and backward on labels. Run with ``--perf-components``."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .cases import Case
    from .measure.time import Benchmark
    from .procedure import Procedure, Workspace
    from .subject import Stage

pytestmark = pytest.mark.filterwarnings("default")


def test_training_step(
    case: "Case", workspace: "Workspace", stage: "Stage", procedure: "Procedure", benchmark: "Benchmark"
) -> None:
    """Memory, parity, counters and time of one case, against the machine's limits."""
    procedure.measure(case, workspace, stage, benchmark)
