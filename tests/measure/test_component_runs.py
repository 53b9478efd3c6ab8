"""Runs of the suite with components and accuracy, on a miniature of tiny.en, and what they record."""

import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import try_to_load_from_cache

from tests.running import read_run, run_suite
from tests.whole_runs import validate_run

COMPONENTS = ("--perf-components", "--perf-device", "cpu", "--perf-rounds", "2")
CHOSEN = "flash and (cache_64 or encoder_batch_1 or prefill)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of three components was saved, profiled."""
    folder = tmp_path_factory.mktemp("components")
    options = ("--perf-profile", str(folder / "profile"), f"--benchmark-json={folder}/run.json")
    result = run_suite(*COMPONENTS, "-k", CHOSEN, *options, plugins=("small_checkpoints",))
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output.txt").write_text(result.stdout)
    return folder


@pytest.fixture
def saved(folder: Path) -> dict[str, Any]:
    return read_run(folder / "run.json")


def test_components_record_what_all_cases_do(saved: dict[str, Any]) -> None:
    assert validate_run(saved) == []
    names = {bench["name"]: bench for bench in saved["benchmarks"]}
    assert [*names] == [
        "test_encoder[tiny.en-4-encoder_batch_1-flash]",
        "test_prefill[tiny.en-4-prefill_batch_1-flash]",
        "test_decode_step[tiny.en-4-cache_64-flash]",
    ]
    step = names["test_decode_step[tiny.en-4-cache_64-flash]"]
    assert step["group"] == "tiny.en-4-cache_64"
    assert step["params"] == {
        "checkpoint": "tiny.en",
        "decoder_layers": 4,
        "setting": "cache_64",
        "implementation": "flash",
    }
    for bench in names.values():
        info = bench["extra_info"]
        assert len(info["control"]["rounds_seconds"]) == len(bench["stats"]["data"]) == 2
        assert info["yardstick"] is None
        assert info["peak_memory_allocated_bytes"] > info["model_memory_bytes"] > 0
        assert info["flop_count"] >= 0.9 * info["limit_flops"] > 0
    assert len({bench["extra_info"]["case_definition"] for bench in names.values()}) == 3


def test_the_floor_is_that_of_the_recorded_limits(saved: dict[str, Any], folder: Path) -> None:
    limits = saved["machine_info"]["limits"]
    for bench in saved["benchmarks"]:
        info = bench["extra_info"]
        floor = max(
            info["limit_bytes"] / limits["memory_bytes_per_second"],
            info["limit_flops"] / limits["flops_per_second"]["float32"],
        )
        assert info["floor_seconds"] == pytest.approx(floor)
        assert info["fraction_of_limit"] == pytest.approx(floor / bench["stats"]["median"])
    assert "of limit" in (folder / "output.txt").read_text()


def test_profiles_lie_beside_the_run(saved: dict[str, Any], folder: Path) -> None:
    for bench in saved["benchmarks"]:
        stem = bench["name"].replace("[", "-").removesuffix("]")
        assert (folder / "profile" / f"{stem}.trace.json.gz").stat().st_size > 0
        first = (folder / "profile" / f"{stem}.txt").read_text().splitlines()[0]
        assert first.startswith("tiny.en-4-")
        assert first.endswith(f"at this machine's limits {bench['extra_info']['floor_seconds']:.6f} s")
        assert 0.5 < sum(bench["extra_info"]["op_shares"].values()) <= 1.001


@pytest.mark.slow
def test_what_is_not_installed_is_skipped_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    asked = ("--perf-implementation", "flash_attention_2", "-k", "cache_64", f"--benchmark-json={path}")
    result = run_suite(*COMPONENTS, *asked, plugins=("small_checkpoints",))
    assert result.returncode == 0
    (entry,) = read_run(path)["perf_cases"]
    assert entry["outcome"] == "skipped"
    assert entry["reason"].startswith("flash_attention_2 ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "reason"),
    [("synthetic", "synthetic audio comes without its words"), (None, "neither in the Hub's cache nor to be had")],
)
def test_accuracy_without_words_or_weights_is_skipped_with_its_reason(
    dataset: str | None, reason: str, tmp_path: Path
) -> None:
    if dataset is None:
        dataset = os.environ.get("WHISPER_TEST_SPEECH")
        if dataset is None:
            pytest.skip("WHISPER_TEST_SPEECH names no folder of real speech")
    path = tmp_path / "run.json"
    options = ("--perf-dataset", dataset, f"--benchmark-json={path}", "--perf-implementation", "flash")
    result = run_suite("--perf-accuracy", "--perf-device", "cpu", *options, HF_HOME=str(tmp_path / "empty"))
    assert result.returncode == 0, result.stdout + result.stderr
    (entry,) = read_run(path)["perf_cases"]
    assert entry["outcome"] == "skipped"
    assert reason in entry["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "implementations"),
    # float16 passes too, and takes a CPU minutes.
    [("float32", ["original", "flash"]), ("bfloat16", ["flash"])],
)
def test_real_words_without_an_error(dtype: str, implementations: list[str], tmp_path: Path) -> None:
    speech = os.environ.get("WHISPER_TEST_SPEECH")
    if speech is None:
        pytest.skip("WHISPER_TEST_SPEECH names no folder of real speech")
    if not isinstance(try_to_load_from_cache("openai/whisper-tiny.en", "model.safetensors"), str):
        pytest.skip("openai/whisper-tiny.en is not in the Hub's cache")
    path = tmp_path / "run.json"
    options = ("--perf-dataset", speech, "--perf-dtype", dtype, "--perf-rounds", "1", f"--benchmark-json={path}")
    chosen = [f"--perf-implementation={implementation}" for implementation in implementations]
    result = run_suite("--perf-accuracy", "--perf-device", "cpu", *options, *chosen)
    assert result.returncode == 0, result.stdout + result.stderr
    run = read_run(path)
    assert validate_run(run) == []
    assert [bench["params"]["implementation"] for bench in run["benchmarks"]] == implementations
    for bench in run["benchmarks"]:
        assert bench["extra_info"]["word_error_rate"] == 0
        assert bench["extra_info"]["weights"] == "pretrained"
        assert bench["extra_info"]["batch_size"] == 1
        assert bench["extra_info"]["parity"]["tokens_equal"]
