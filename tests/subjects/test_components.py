"""Components in miniature: every work and implementation, and what is recorded of them."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from perf_tests.machine import limits
from perf_tests.machine.place import Place
from perf_tests.matrix import cases, components
from perf_tests.matrix.cases import Case, Cell
from perf_tests.matrix.plan import Options, Probes, make_plan
from perf_tests.measure.counters import count_round
from perf_tests.measure.memory import measure_memory
from perf_tests.measure.profile import profile_round
from perf_tests.subjects.audio import Speech, make_speech
from perf_tests.subjects.components.component import Component
from perf_tests.subjects.components.workspace import ComponentWorkspace
from perf_tests.subjects.parity import ParityError
from perf_tests.subjects.subject import Stage

CPU = Probes(lambda: False, lambda: 0, lambda dtype: True)
PLAN = make_plan(Options(components=True), CPU)
LIMITS = {
    "memory_bytes_per_second": 1e10,
    "memory_way": "sum",
    "flops_per_second": dict.fromkeys(("float32", "float16", "bfloat16"), 1e11),
    "flops_ways": {},
}
ONE_TOKEN = [name for name, work in components.WORKS.items() if work.batch_size == 1 and work.seconds <= 30]
SETTINGS = [*ONE_TOKEN, "long_form"]


@pytest.fixture
def make_workspace(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ComponentWorkspace]]:
    """Makes workspaces of a checkpoint in miniature on the CPU."""
    mini = cases.CHECKPOINTS["tiny.en"]._replace(d_model=32, heads=2, ffn=64, encoder_layers=1)
    monkeypatch.setitem(cases.CHECKPOINTS, "tiny.en", mini)
    monkeypatch.setitem(components.WORKS, "long_form", components.WORKS["long_form"]._replace(seconds=60, new_tokens=5))
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()

    def make(setting: str, dtype: torch.dtype = torch.float32) -> ComponentWorkspace:
        place = Place(torch.device("cpu"), dtype)
        speech = Speech(make_speech(1), "synthetic", texts=["nothing"])
        return ComponentWorkspace(Cell("tiny.en", 2, setting), PLAN, speech, place, None, LIMITS)

    yield make
    transformers.logging.set_verbosity(verbosity)


@pytest.fixture
def build(make_workspace: Callable[..., ComponentWorkspace]) -> Iterator[Callable[..., tuple[Any, Component, Stage]]]:
    """Builds one component with its workspace and stage."""
    stages: list[Stage] = []

    def make(setting: str, implementation: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Component, Stage]:
        workspace = make_workspace(setting, dtype)
        stages.append(workspace.stage())
        subject = stages[-1].build(implementation)
        assert isinstance(subject, Component)
        return workspace, subject, stages[-1]

    yield make
    for stage in stages:
        stage.clear()


@pytest.mark.parametrize("setting", SETTINGS)
def test_flash_does_what_the_original_does(setting: str, build: Callable[..., Any]) -> None:
    workspace, subject, stage = build(setting, "flash")
    subject.run_round()
    parity = workspace.check_parity(subject, stage)
    assert 0 <= parity["max_abs_error"] <= parity["bound"]
    chooses = components.WORKS[setting].test in ("test_load", "test_long_form")
    assert parity["tokens_equal"] is (True if chooses else None)
    found = workspace.findings(subject, [1.0, 2.0, 4.0])
    assert found["fraction_of_limit"] == found["floor_seconds"] / 2 > 0
    assert found["limit_flops"] > 0
    assert found["limit_bytes"] > 0


@pytest.mark.parametrize("setting", ["encoder_batch_1", "cache_64", "decoder_self_batch_1", "training_batch_1"])
def test_eager_and_half_precision(setting: str, build: Callable[..., Any]) -> None:
    for implementation in ("eager", "flash"):
        workspace, subject, stage = build(setting, implementation, torch.bfloat16)
        parity = workspace.check_parity(subject, stage)
        assert parity["reference"] == "original float32"
        assert parity["original_max_abs_error"] > 0


@pytest.mark.parametrize("setting", ["encoder_batch_1", "cache_64", "training_batch_1", "load"])
def test_another_output_is_no_measurement(
    setting: str, build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, subject, stage = build(setting, "flash")
    outputs = subject.outputs
    monkeypatch.setattr(subject, "outputs", lambda: tuple(part * 1.01 for part in outputs()))
    with pytest.raises(ParityError, match="flash's output is off by"):
        workspace.check_parity(subject, stage)
    monkeypatch.setattr(subject, "outputs", lambda: tuple(part * torch.nan for part in outputs()))
    with pytest.raises(ParityError, match="NaN"):
        workspace.check_parity(subject, stage)
    monkeypatch.undo()


def test_every_step_is_the_same_step(build: Callable[..., Any]) -> None:
    """A round leaves the cache as it was: rounds can be repeated, and the last is the first."""
    for implementation in ("original", "flash"):
        _, subject, _ = build("cache_64", implementation)
        first = subject.compute().clone()
        for _ in range(3):
            subject.run_round()
        torch.testing.assert_close(subject.compute(), first, rtol=0, atol=0)


def test_the_step_sees_all_of_its_cache(build: Callable[..., Any]) -> None:
    _, subject, _ = build("cache_64", "flash")
    logits = subject.compute().clone()
    subject.cached = subject.cached.clone()
    subject.cached[:, 0] += 1
    subject._stepper = None
    assert not torch.allclose(subject.compute(), logits)


@pytest.mark.parametrize("setting", ["encoder_batch_1", "cross_batch_1", "decoder_self_batch_1"])
def test_the_floors_operations_are_those_that_are_counted(setting: str, build: Callable[..., Any]) -> None:
    """All but causal attention, which the fused kernel's formula counts whole."""
    _, subject, _ = build(setting, "original")
    counted = count_round(subject).flops
    flops = sum(phase.flops for phase in subject.phases())
    masked = 4 * 32 * (448 * 448 - 448 * 449 // 2) if setting == "decoder_self_batch_1" else 0
    assert flops == counted - masked


@pytest.mark.parametrize("setting", ["prefill_batch_1", "cache_256", "training_batch_1"])
def test_no_floor_is_above_what_is_counted(setting: str, build: Callable[..., Any]) -> None:
    _, subject, _ = build(setting, "original")
    subject.run_round()
    counted = count_round(subject).flops
    flops = sum(phase.flops for phase in subject.phases())
    # Nobody needs the original's logits of the whole prompt.
    assert 0.8 * counted < flops <= counted


def test_operators_by_name_sum_up(build: Callable[..., Any]) -> None:
    _, subject, _ = build("cache_1", "original")
    subject.run_round()
    counters = count_round(subject)
    assert sum(counters.by_operator.values()) == counters.aten_ops
    assert counters.by_operator["aten.cat"] == 2 * 2  # keys and values of two layers


def test_loading_leaves_no_files(build: Callable[..., Any]) -> None:
    _, subject, stage = build("load", "original")
    folder = Path(subject._folder.name)
    assert (folder / "config.json").exists()
    subject.run_round()
    stage.clear()
    assert not folder.exists()


def test_the_cache_counts_as_memory(build: Callable[..., Any]) -> None:
    peaks = {}
    for setting in ("cache_1", "cache_447"):
        _, subject, _ = build(setting, "original")
        memory = measure_memory(subject)
        peaks[setting] = memory.peak_allocated
        assert memory.peak_allocated > memory.model > 0
    # Keys and values of 446 positions more, in two layers of width 32; appending makes a second copy of one.
    assert peaks["cache_447"] - peaks["cache_1"] >= 2 * 2 * 446 * 32 * 4


def test_a_profile_opens_and_names_what_took_the_time(build: Callable[..., Any], tmp_path: Path) -> None:
    _, subject, _ = build("encoder_batch_1", "flash")
    case = Case("tiny.en", 2, "encoder_batch_1", "flash")
    shares = profile_round(subject, tmp_path / "traces", case)
    assert 0.5 < sum(shares.values()) <= 1.001
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    stem = tmp_path / "traces" / "test_encoder-tiny.en-2-encoder_batch_1-flash"
    with gzip.open(f"{stem}.trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    # What Perfetto asks of an event that took time (the Trace Event Format's "complete event").
    complete = [event for event in events if event["ph"] == "X"]
    assert all({"name", "ts", "dur", "pid", "tid"} <= {*event} and event["dur"] >= 0 for event in complete)
    assert next(iter(shares)) in {event["name"] for event in complete}
    assert next(iter(shares)) in Path(f"{stem}.txt").read_text().splitlines()[2]


def test_limits_are_measured_in_all_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(limits, "CPU_SHAPES", ((8, 16, 32),))
    monkeypatch.setattr(limits, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(limits, "LONGER_LOOK_SECONDS", 0.0)
    found = limits.measure_limits(Place(torch.device("cpu"), torch.float32))
    assert found["memory_bytes_per_second"] > 0
    assert found["flops_per_second"]["float32"] > 0
    assert found["flops_ways"]["float32"].endswith("8x16x32")


@pytest.mark.parametrize(("half", "expected"), [(3.0, (7.0, "upcast: in float32")), (9.0, (9.0, "in float16"))])
def test_half_precision_on_a_cpu_is_limited_by_the_faster_of_both(
    half: float, expected: tuple[float, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without instructions for it, products are computed in float32."""
    best = {None: (1.0, "sum"), torch.float32: (7.0, "in float32"), torch.bfloat16: (1.0, "")}
    best[torch.float16] = (half, "in float16")
    monkeypatch.setattr(limits, "_moves", lambda place: None)
    monkeypatch.setattr(limits, "_products", lambda place, dtype: dtype)
    monkeypatch.setattr(limits, "_best", lambda dtype, place: best[dtype])
    found = limits.measure_limits(Place(torch.device("cpu"), torch.float16))
    assert (found["flops_per_second"]["float16"], found["flops_ways"]["float16"]) == expected
    assert found["flops_per_second"]["float32"] == 7.0


def test_a_limit_is_what_the_best_way_keeps_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what its first call took nor what a lucky one did."""
    clock = [0.0]
    monkeypatch.setattr(limits.time, "perf_counter", lambda: clock[0])
    durations = {"slow": iter([1.0] * 9), "fast": iter([4.0, 2.0, 2.0, 4.0, 1.0, 2.0, 2.0])}

    def call(name: str) -> None:
        clock[0] += next(durations[name])

    ways = [limits.Way("slow", 1, lambda: call("slow")), limits.Way("fast", 5, lambda: call("fast"))]
    monkeypatch.setattr(limits, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(limits, "LONGER_LOOK_SECONDS", 4.5)
    assert limits._best(ways, Place(torch.device("cpu"), torch.float32)) == (2.5, "fast")
