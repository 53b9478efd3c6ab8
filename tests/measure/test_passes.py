"""What the passes over a case run, by plans for a GPU and a CPU and with models that generate nothing."""

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
from perf_tests.measure.moving import PAIRS_PER_PLACE
from perf_tests.measure.procedure import Procedure
from perf_tests.session.progress import Progress
from perf_tests.subjects.audio import Speech
from perf_tests.subjects.subject import Subject
from perf_tests.subjects.workspace import CONTROL, Workspace, make_workspace

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


def prepare(cell: Cell, device: str, rounds: int) -> tuple[Procedure, Workspace]:
    """What measures so many rounds of ``cell`` as on ``device``, whose models stand on the CPU all the same."""
    probes = Probes(nvidia_driver=lambda: True, cuda_devices=lambda: 1, cpu_computes=lambda dtype: True)
    plan = make_plan(Options(device=device, dtype="float32"), probes)._replace(rounds={cell.setting: rounds})
    speech = Speech([np.zeros(16000, dtype=np.float32)] * 2, "synthetic")
    workspace = make_workspace(cell, plan, speech, Place(torch.device("cpu"), torch.float32), None)
    progress = Progress(SimpleNamespace(pluginmanager=SimpleNamespace(get_plugin=lambda name: None)))
    return Procedure(plan, speech, progress), workspace


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
    procedure, workspace = prepare(mini_cell, "cuda", ROUNDS)

    def measure(implementation: str) -> dict[str, float]:
        asked.clear()
        benchmark = Pedantic()
        stage = workspace.stage()
        procedure.measure(Case(*mini_cell, implementation), workspace, stage, benchmark)
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


@pytest.mark.parametrize(
    ("device", "implementation", "moving"), [("cpu", "flash", True), ("cpu", CONTROL, False), ("cuda", "flash", False)]
)
def test_flash_and_its_control_move_on_in_memory_on_a_cpu(
    mini_cell: Cell, monkeypatch: pytest.MonkeyPatch, device: str, implementation: str, moving: bool
) -> None:
    timed: dict[str, list[object]] = {}

    def run_round(self: Subject) -> None:
        timed.setdefault(self.implementation, []).append(self.model)

    monkeypatch.setattr(Subject, "run_round", run_round)
    monkeypatch.setattr("perf_tests.machine.nvml.load", lambda: None)
    rounds = 2 * PAIRS_PER_PLACE
    procedure, workspace = prepare(mini_cell, device, rounds)
    stage = workspace.stage()
    subject = stage.build(implementation)
    procedure.time(Case(*mini_cell, implementation), subject, Pedantic(), stage)
    stage.clear()
    models = {name: [*map(id, models[-rounds:])] for name, models in timed.items()}
    assert [*models] == ([CONTROL, implementation] if implementation != CONTROL else [CONTROL])
    for each in models.values():
        first, second = {*each[:PAIRS_PER_PLACE]}, {*each[PAIRS_PER_PLACE:]}
        assert len(first) == len(second) == 1
        assert (first != second) == moving
