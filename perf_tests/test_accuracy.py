"""Word error rates of published checkpoints on real speech. Run with ``--perf-accuracy``."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from perf_tests.measure.procedure import Procedure

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def words(procedure: "Procedure") -> None:
    """What is needed to count wrong words; asked for first, before anything is built."""
    pytest.importorskip("jiwer", reason="the word error rate needs `jiwer` (extra `accuracy`)")
    if procedure.speech.texts is None:
        name = procedure.speech.name
        pytest.skip(f"{name} audio comes without its words; give a --perf-dataset that has a column 'text'")


def test_accuracy(words: None, measure: Callable[[], None]) -> None:
    """Parity, word error rate, memory, counters and time of transcribing the data set's clips."""
    from perf_tests.subjects.weights import WeightsUnavailableError

    try:
        measure()
    except WeightsUnavailableError as error:
        pytest.skip(str(error))
