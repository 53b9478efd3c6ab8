"""Models that are built anew while they are timed."""

import gc
import weakref

import pytest
import torch

from perf_tests.matrix.cases import Cell
from perf_tests.measure.moving import move_models
from perf_tests.measure.yardstick import Yardstick, is_available
from perf_tests.subjects.subject import Stage
from perf_tests.subjects.weights import Weights
from perf_tests.subjects.workspace import CONTROL
from tests.plugins.ticking_clock import tick

needs_onednn = pytest.mark.skipif(not is_available(), reason="the yardstick needs oneDNN")


def test_models_that_moved_compute_the_same_and_the_old_ones_are_gone(stage: Stage) -> None:
    subjects = stage.build("flash"), stage.build(CONTROL)
    tokens = [subject.generate() for subject in subjects]
    old = [weakref.ref(subject.model) for subject in subjects]
    gc.disable()
    try:
        move_models(stage, *subjects, None)
        assert [model() for model in old] == [None, None]
    finally:
        gc.enable()
    assert all(map(torch.equal, (subject.generate() for subject in subjects), tokens))


@needs_onednn
def test_the_yardstick_moves_and_keeps_its_weights(mini_cell: Cell, stage: Stage) -> None:
    yardstick = Yardstick(mini_cell, tick)
    before = yardstick._encoder[0].qkv
    move_models(stage, stage.build("flash"), stage.build(CONTROL), yardstick)
    assert yardstick._encoder[0].qkv is not before
    assert torch.equal(yardstick._encoder[0].qkv, before)


def test_where_moving_fails_the_stage_can_be_cleared(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = stage.build("flash"), stage.build(CONTROL)

    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Weights, "build", fail)
    with pytest.raises(MemoryError):
        move_models(stage, *subjects, None)
    stage.clear()
    assert not any(hasattr(subject, "model") for subject in subjects)
