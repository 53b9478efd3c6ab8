"""What the suite times is `generate`: it and a bare loop agree."""

import statistics
import time

import pytest
import torch
import transformers
from pytest_benchmark.fixture import BenchmarkFixture

from perf_tests.audio import Speech, make_speech
from perf_tests.cases import Cell
from perf_tests.intervals import paired_ratios
from perf_tests.measure.time import time_rounds
from perf_tests.models import Weights
from perf_tests.subject import Place, Stage, make_features

ROUNDS = 20


@pytest.mark.slow
def test_the_suite_and_a_bare_loop_agree(benchmark: BenchmarkFixture) -> None:
    """Bare rounds and the suite's take turns, so that both see the same machine."""
    if benchmark.disabled:
        pytest.skip("needs pytest-benchmark enabled")
    cell = Cell("tiny.en", 4, "single")
    place = Place(torch.device("cpu"), torch.float32)
    stage = Stage(cell, Weights(cell, "random"), make_features(cell, Speech(make_speech(1), "synthetic")), place)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        subject = stage.build("original")
        model, features, arguments = subject.model, subject.features, subject.arguments
        model.generate(features, **arguments)
        bare: list[float] = []

        def run_bare() -> None:
            start = time.perf_counter()
            model.generate(features, **arguments)
            bare.append(time.perf_counter() - start)

        time_rounds(benchmark, subject.run_round, ROUNDS, control=run_bare)
    finally:
        transformers.logging.set_verbosity(verbosity)
        stage.clear()
    ratio = statistics.median(paired_ratios(bare[-ROUNDS:], benchmark.stats.stats.data))
    assert ratio == pytest.approx(1, abs=0.02)
