"""How many rounds the passes over a case take on a GPU, told by a plan for one and models that generate nothing."""

import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from perf_tests.machine.place import Place
from perf_tests.matrix import cases
from perf_tests.matrix.cases import Case, Cell
from perf_tests.matrix.plan import Options, Probes, make_plan
from perf_tests.measure.counters import count_launches
from perf_tests.measure.procedure import Procedure
from perf_tests.session.progress import Progress
from perf_tests.subjects.audio import Speech
from perf_tests.subjects.subject import Subject
from perf_tests.subjects.workspace import make_workspace

TOKENS, ROUNDS = 256, 2


class Pedantic:
    """Stands for pytest-benchmark's fixture; times nothing."""

    stats = None
    disabled = False
    _timer = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}

    def pedantic(self, target: Any, *, setup: Any, teardown: Any, rounds: int, warmup_rounds: int) -> None:
        for _ in range(warmup_rounds + rounds):
            setup()
            target()
            teardown()


@pytest.fixture
def tokens_of(mini_cell: Cell, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Measures an implementation's case; returns how many tokens each implementation was asked for, as rounds."""
    monkeypatch.setitem(cases.SETTINGS, mini_cell.setting, cases.Setting(2, TOKENS, 10))
    monkeypatch.setattr("perf_tests.machine.nvml.load", lambda: None)
    asked: Counter[str] = Counter()

    def generate(self: Subject, **other: Any) -> torch.Tensor:
        tokens = {**self.arguments, **other}["max_new_tokens"]
        asked[self.implementation] += tokens
        return torch.zeros(len(self.features), tokens, dtype=torch.long)

    monkeypatch.setattr(Subject, "generate", generate)
    probes = Probes(nvidia_driver=lambda: True, cuda_devices=lambda: 1, cpu_computes=lambda dtype: True)
    plan = make_plan(Options(device="cuda", dtype="float32"), probes)._replace(rounds={mini_cell.setting: ROUNDS})
    speech = Speech([np.zeros(16000, dtype=np.float32)] * 2, "synthetic")
    workspace = make_workspace(mini_cell, plan, speech, Place(torch.device("cpu"), torch.float32), None)
    progress = Progress(SimpleNamespace(pluginmanager=SimpleNamespace(get_plugin=lambda name: None)))

    def measure(implementation: str) -> dict[str, float]:
        asked.clear()
        benchmark = Pedantic()
        stage = workspace.stage()
        Procedure(plan, speech, progress).measure(Case(*mini_cell, implementation), workspace, stage, benchmark)
        stage.clear()
        passes = benchmark.extra_info["pass_seconds"]
        assert [*passes] == ["building the model", "memory", "parity", "counters", "timing"]
        assert min(passes.values()) > 0
        return {name: tokens / TOKENS for name, tokens in asked.items()}

    return measure


def test_a_long_case_of_the_original_takes_less_than_six_rounds(tokens_of: Any) -> None:
    """One for memory and parity, one for the operators, those that are timed; and short ones."""
    launches: list[int] = []
    count_launches(lambda length: launches.append(length or TOKENS) or [], TOKENS)
    rounds = tokens_of("original")
    assert [*rounds] == ["original"]
    assert ROUNDS + 2 < rounds["original"] < ROUNDS + 2.1
    assert rounds["original"] + sum(launches) / TOKENS < 5


def test_a_long_case_of_flash_takes_three_rounds_of_the_original(tokens_of: Any) -> None:
    """Its controls and their warm-up, once the cell's reference is made."""
    tokens_of("original")
    rounds = tokens_of("flash")
    assert rounds["original"] == ROUNDS + 1
    # Captured for its length in a round of its own before the memory is measured.
    assert rounds["flash"] == 2 + 1 + ROUNDS + 1
