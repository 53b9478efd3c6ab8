"""Word error rates of published checkpoints on real speech. Run with ``--perf-accuracy``."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .cases import Case
    from .measure.time import Benchmark
    from .procedure import Procedure, Workspace
    from .subject import Stage

pytestmark = pytest.mark.filterwarnings("default")


def test_accuracy(
    case: "Case", workspace: "Workspace", stage: "Stage", procedure: "Procedure", benchmark: "Benchmark"
) -> None:
    """Parity, word error rate, memory, counters and time of transcribing the data set's clips."""
    from .models import WeightsUnavailableError

    pytest.importorskip("jiwer", reason="the word error rate needs `jiwer` (extra `accuracy`)")
    if procedure.speech.texts is None:
        pytest.skip(
            f"{procedure.speech.name} audio does not say what is said; give a --perf-dataset with a column 'text'"
        )
    try:
        procedure.measure(case, workspace, stage, benchmark)
    except WeightsUnavailableError as error:
        pytest.skip(str(error))
