"""Models that are built anew while they are timed."""

import gc
import weakref
from unittest.mock import create_autospec

import pytest
import torch

from perf_tests.measure.moving import move_models
from perf_tests.measure.yardstick import Yardstick
from perf_tests.subjects.subject import Stage
from perf_tests.subjects.weights import Weights
from perf_tests.subjects.workspace import CONTROL


def test_models_that_moved_compute_the_same_and_the_old_ones_are_gone(stage: Stage) -> None:
    subjects = stage.build("flash"), stage.build(CONTROL)
    tokens = [subject.generate() for subject in subjects]
    old = [weakref.ref(subject.model) for subject in subjects]
    yardstick = create_autospec(Yardstick, instance=True)
    gc.disable()
    try:
        move_models(stage, *subjects, yardstick)
        assert [model() for model in old] == [None, None]
    finally:
        gc.enable()
    yardstick.rebuild.assert_called_once_with()
    assert all(map(torch.equal, (subject.generate() for subject in subjects), tokens))


def test_where_moving_fails_the_stage_can_be_cleared(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = stage.build("flash"), stage.build(CONTROL)

    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Weights, "build", fail)
    with pytest.raises(MemoryError):
        move_models(stage, *subjects, None)
    stage.clear()
    assert not any(hasattr(subject, "model") for subject in subjects)
