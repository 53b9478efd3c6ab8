"""Fixtures of the suite's tests: a stage of miniature models."""

from collections.abc import Callable, Iterator

import pytest
import torch
import transformers

from perf_tests.machine.place import Place
from perf_tests.matrix import cases
from perf_tests.matrix.cases import Cell
from perf_tests.subjects.subject import Stage
from perf_tests.subjects.weights import Weights

CELL = Cell("mini.en", 2, "brief")


@pytest.fixture
def mini_cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A cell of a checkpoint and a setting that exist in the tests alone."""
    mini = cases.CHECKPOINTS["tiny.en"]._replace(d_model=32, heads=2, ffn=64, encoder_layers=1, decoder_layers=2)
    monkeypatch.setitem(cases.CHECKPOINTS, CELL.checkpoint, mini)
    monkeypatch.setitem(cases.SETTINGS, CELL.setting, cases.Setting(batch_size=2, new_tokens=5, rounds=3))
    return CELL


@pytest.fixture
def make_stage(mini_cell: Cell) -> Iterator[Callable[[torch.dtype], Stage]]:
    """Makes stages of the mini cell on the CPU; features are noise."""
    weights = Weights(mini_cell, "random")
    features = torch.randn(2, 80, 3000, generator=torch.Generator().manual_seed(1))
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    stages: list[Stage] = []

    def make(dtype: torch.dtype) -> Stage:
        stages.append(Stage(mini_cell, weights, features, Place(torch.device("cpu"), dtype)))
        return stages[-1]

    yield make
    for stage in stages:
        stage.clear()
    transformers.logging.set_verbosity(verbosity)


@pytest.fixture
def stage(make_stage: Callable[[torch.dtype], Stage]) -> Stage:
    """A float32 stage of the mini cell."""
    return make_stage(torch.float32)
