"""`--perf-counters-only`: what is counted without arithmetic equals what a real round gives."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer

from perf_tests.machine.place import Place
from perf_tests.matrix import cases
from perf_tests.matrix.cases import IMPLEMENTATIONS, SETTINGS, Case
from perf_tests.measure import hollow
from perf_tests.measure.counters import Counters, count_round
from perf_tests.measure.hollow import EndedEarlyError, count_hollow_round, warm_up_without_products
from perf_tests.measure.memory import measure_memory, model_bytes
from perf_tests.runs.schema import COUNTED_INFO
from perf_tests.subjects.subject import Stage, Subject
from perf_tests.subjects.tensor_layout import Layout
from perf_tests.subjects.weights import ZEROS, Weights
from tests.mini_models import CELL
from tests.running import read_run, run, run_suite
from tests.whole_runs import validate_run
from whisper_flash_attention.decoder import Decoder

MakeStage = Callable[[torch.dtype], Stage]


def set_brief(monkeypatch: pytest.MonkeyPatch, batch_size: int, new_tokens: int) -> None:
    monkeypatch.setitem(cases.SETTINGS, CELL.setting, cases.Setting(batch_size, new_tokens, rounds=1))


def build(stage: Stage, implementation: str) -> Subject:
    """A subject whose features are as many as the setting wants."""
    subject = stage.build(implementation)
    subject.features = subject.features[:1].expand(SETTINGS[stage.cell.setting].batch_size, -1, -1).contiguous()
    return subject


def count_really(subject: Subject) -> Counters:
    subject.run_round()
    return count_round(subject)


def count_both(stage: Stage, implementation: str) -> tuple[Counters, Counters]:
    """What a real round counts, and a hollow one, each on a model of its own."""
    hollow_round = count_hollow_round(build(stage, implementation), Case(*stage.cell, implementation))
    return count_really(build(stage, implementation)), hollow_round


@pytest.mark.parametrize("large", [1, hollow.LARGE], ids=["all hollow", "large hollow"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_hollow_rounds_count_what_real_rounds_do(
    implementation: str, dtype: torch.dtype, large: int, make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hollow, "LARGE", large)
    stage = make_stage(dtype)
    # In bfloat16 flash takes another kernel from 128 keys of the whole batch on: 3 x 45 are past that.
    many = 45 if implementation == "flash" else 6
    for batch_size, new_tokens in ((1, 2), (3, many)):
        set_brief(monkeypatch, batch_size, new_tokens)
        real, counted = count_both(stage, implementation)
        assert counted == real
        assert counted.aten_ops > 0


def test_a_hollow_model_takes_the_memory_of_a_real_one(stage: Stage) -> None:
    """Flash lays its weights out anew in the first round."""
    hollow_subject, real = stage.build("flash"), stage.build("flash")
    count_hollow_round(hollow_subject, Case(*CELL, "flash"))
    real.run_round()
    assert model_bytes(hollow_subject.model) == model_bytes(real.model)
    assert hollow_subject.attention_backend() == real.attention_backend()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_peak_after_a_warm_up_without_products(
    implementation: str, dtype: torch.dtype, make_stage: MakeStage
) -> None:
    stage = make_stage(dtype)
    subject, real = stage.build(implementation), stage.build(implementation)
    measured = measure_memory(subject, partial(warm_up_without_products, subject))
    assert measured == measure_memory(real)
    count_hollow_round(subject, Case(*CELL, implementation))
    assert torch.equal(subject.generate(), real.generate()), "a model that was warm is none the worse for being counted"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_peak_of_a_model_of_zeros(implementation: str, dtype: torch.dtype, make_stage: MakeStage) -> None:
    stage = make_stage(dtype)
    zeros = Stage(CELL, Weights(CELL, ZEROS), torch.randn(2, 80, 3000), stage.place)
    subject = zeros.build(implementation)
    measured = measure_memory(subject, partial(warm_up_without_products, subject))
    assert measured == measure_memory(stage.build(implementation))
    zeros.clear()


def plant_in_flash(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """Let flash's step do one operator more at every so many cached positions."""
    read_prompt, step = Decoder.read_prompt, Decoder.step

    def read_and_add(self: Decoder, ids: torch.Tensor) -> torch.Tensor:
        return add(read_prompt(self, ids), ids.shape[1])

    def step_and_add(self: Decoder, tokens: torch.Tensor, length: int) -> torch.Tensor:
        return add(step(self, tokens, length), length)

    def add(logits: torch.Tensor, span: int) -> torch.Tensor:
        return logits if span % every else logits + 0.0

    monkeypatch.setattr(Decoder, "read_prompt", read_and_add)
    monkeypatch.setattr(Decoder, "step", step_and_add)


def plant_in_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each decoder layer of the original do one operator more."""
    forward = WhisperDecoderLayer.forward

    def run_and_add(layer: WhisperDecoderLayer, *args: Any, **kwargs: Any) -> Any:
        output = forward(layer, *args, **kwargs)
        return (output[0] + 0.0, *output[1:]) if isinstance(output, tuple) else output + 0.0

    monkeypatch.setattr(WhisperDecoderLayer, "forward", run_and_add)


@pytest.mark.parametrize("implementation", ["original", "eager"])
def test_one_operator_more_per_layer_and_token_is_seen(
    implementation: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_brief(monkeypatch, 2, 7)
    before = count_both(stage, implementation)
    plant_in_the_original(monkeypatch)
    after = count_both(stage, implementation)
    growth = [late.aten_ops - early.aten_ops for early, late in zip(before, after, strict=True)]
    assert growth == [7 * CELL.decoder_layers] * 2


@pytest.mark.parametrize("every", [1, 3])
def test_one_operator_more_is_seen_in_whichever_token_it_is(
    every: int, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_brief(monkeypatch, 2, 7)
    before = count_both(stage, "flash")
    plant_in_flash(monkeypatch, every)
    after = count_both(stage, "flash")
    growth = [late.aten_ops - early.aten_ops for early, late in zip(before, after, strict=True)]
    spans = range(len(stage.vocabulary.prompt), len(stage.vocabulary.prompt) + 7)
    assert growth == [sum(span % every == 0 for span in spans)] * 2


def test_a_round_that_ends_early_is_no_count(stage: Stage) -> None:
    subject = stage.build("original")
    subject.arguments = stage.vocabulary.generate_arguments(3)
    with pytest.raises(EndedEarlyError, match=r"mini\.en-2-brief-original: generated \(2, 3\) tokens"):
        count_hollow_round(subject, Case(*CELL, "original"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4)], ids=str)
def test_zeros_have_the_layout_and_the_storage_of_a_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    real = torch.ones(shape, dtype=dtype).transpose(0, -1) if len(shape) == 3 else torch.ones(shape, dtype=dtype)
    zeros = Layout.of(real).zeros()
    assert Layout.of(zeros) == Layout.of(real)
    assert zeros.untyped_storage().nbytes() == real.untyped_storage().nbytes()
    assert not zeros.any()


def test_what_has_no_layout_to_be_known_by_or_gives_no_numbers_is_computed() -> None:
    @torch.library.custom_op("perf_tests_counters::doubled", mutates_args=())
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    numbers = torch.arange(2.0 * hollow.LARGE)
    with hollow.HollowCounter():
        by_library, order, product = doubled(numbers), numbers.sort(descending=True).indices, numbers * 2
    assert torch.equal(by_library, 2 * numbers)
    assert order[0] == len(numbers) - 1
    assert not product.any()


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["original", "flash"])
def test_the_true_batch_of_tiny_en(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 windows, computed and hollow; the warm-up is shorter, and lays flash's weights out too.

    Of 24 tokens, not 256: at this size all that depends on how many are cached has changed by the tenth.
    """
    monkeypatch.setitem(cases.SETTINGS, "batched", cases.SETTINGS["batched"]._replace(new_tokens=24))
    case = Case("tiny.en", 2, "batched", implementation)
    weights = Weights(case.cell, "random")
    features = torch.randn(32, 80, 3000, generator=torch.Generator().manual_seed(1))
    stage = Stage(case.cell, weights, features, Place(torch.device("cpu"), torch.float32))
    zeros = Stage(case.cell, Weights(case.cell, ZEROS), features, stage.place)
    counted = count_hollow_round(zeros.build(implementation), case)
    zeros.clear()
    subject = stage.build(implementation)
    subject.model.generate(features[:1], **stage.vocabulary.generate_arguments(2))
    assert count_round(subject) == counted
    stage.clear()


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_true_round_of_tiny_en(implementation: str) -> None:
    """One window of 25 tokens: peak and counts of a model of zeros, and of one with all its numbers."""
    case = Case("tiny.en", 2, "single", implementation)
    features = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(1))
    measured = []
    for kind in ("random", ZEROS):
        stage = Stage(case.cell, Weights(case.cell, kind), features, Place(torch.device("cpu"), torch.float32))
        subject = stage.build(implementation)
        if kind == ZEROS:
            memory = measure_memory(subject, partial(warm_up_without_products, subject))
            measured.append((memory, count_hollow_round(subject, case)))
        else:
            measured.append((measure_memory(subject), count_round(subject)))
        stage.clear()
    assert measured[0] == measured[1]


# Whole runs

TWO_LAYERS = ("--perf-checkpoint", "tiny.en", "--perf-decoder-layers", "2", "--perf-device", "cpu")
PAPER = ("--perf-preset", "paper", "--perf-dataset", "synthetic")
CHOSEN = ("original", "flash")
CHOICE = tuple(f"--perf-implementation={name}" for name in CHOSEN)
NAMES = [f"test_generate[tiny.en-2-{setting}-{name}]" for setting in ("single", "batched") for name in CHOSEN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a counted run of two cells is saved; `output.txt` is what it printed."""
    folder = tmp_path_factory.mktemp("counted")
    arguments = (*CHOICE, "--perf-counters-only", "--benchmark-autosave", f"--benchmark-storage=file://{folder}")
    result = run_suite(*TWO_LAYERS, *PAPER, *arguments, plugins=("small_checkpoints", "short_batches"))
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output.txt").write_text(result.stdout)
    return folder


@pytest.fixture(scope="module")
def saved(folder: Path) -> dict[str, Any]:
    return read_run(folder)


def infos(saved: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry["extra_info"] for entry in saved["perf_cases"]}


def test_every_case_is_counted_and_none_timed(saved: dict[str, Any]) -> None:
    assert validate_run(saved) == []
    assert saved["benchmarks"] == []
    assert [*infos(saved)] == NAMES
    assert {(entry["outcome"], entry["reason"], entry["session"]) for entry in saved["perf_cases"]} == {
        ("passed", None, 0)
    }
    for name, info in infos(saved).items():
        assert {*info} == {field.name for field in COUNTED_INFO}
        assert (info["peak_memory_allocated_bytes"] is None) == ("batched" in name)
        assert info["attention_backend"]


def test_counts_and_peaks_are_those_of_a_timed_run(saved: dict[str, Any], tmp_path: Path) -> None:
    timing = ("--perf-setting", "single", "--perf-rounds", "1", f"--benchmark-json={tmp_path / 'timed.json'}")
    result = run_suite(*TWO_LAYERS, *PAPER, CHOICE[-1], *timing, plugins=("small_checkpoints",))
    assert result.returncode == 0, result.stdout
    timed = {bench["name"]: bench["extra_info"] for bench in read_run(tmp_path / "timed.json")["benchmarks"]}
    assert len(timed) == 1
    exact = ("case_definition", "aten_op_count", "flop_count", "peak_memory_allocated_bytes", "model_memory_bytes")
    for name, info in timed.items():
        for key in exact:
            assert infos(saved)[name][key] == info[key], (name, key)


def test_the_output_says_that_nothing_was_timed(folder: Path) -> None:
    output = (folder / "output.txt").read_text()
    assert "preset paper (asked for): 4 cases, counted and not timed, about" in output
    assert "tiny.en-2-batched-flash: " in output
    assert "per round" not in output
    assert "warning" not in output.lower()


def test_two_counted_runs_compare(saved: dict[str, Any], tmp_path: Path) -> None:
    base, head = tmp_path / "base.json", tmp_path / "head.json"
    base.write_text(json.dumps(saved))
    head.write_text(json.dumps(saved | {"datetime": "2026-11-25T00:00:00"}))
    result = run([sys.executable, "-m", "perf_tests", "compare", str(base), str(head), "--strict", "--same"])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 cases: counted without timing by both runs" in result.stdout


def test_pytest_benchmark_reads_a_counted_run(folder: Path) -> None:
    command = [sys.executable, "-m", "pytest_benchmark", "--storage", f"file://{folder}", "compare"]
    result = run(command)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize(("option", "value"), [("--perf-rounds", "3"), ("--perf-profile", "traces")])
def test_what_is_timed_and_counters_only_exclude_each_other(option: str, value: str) -> None:
    result = run_suite("--perf-counters-only", option, value, "--perf-device", "cpu")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"{option}: --perf-counters-only times nothing; leave one of the two out" in result.stderr
