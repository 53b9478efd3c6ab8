"""The suite from the command line, without running a case."""

import resource
import sys
from pathlib import Path

import pytest

from tests.running import run, run_suite

USAGE_ERROR = 4


@pytest.mark.parametrize(("preset", "count"), [("quick", 12), ("paper", 78), ("full", 96)])
def test_collection_shows_the_presets_cases(preset: str, count: int) -> None:
    result = run_suite("--collect-only", "-q", "--perf-preset", preset)
    ids = [line for line in result.stdout.splitlines() if "::" in line]
    assert result.returncode == 0
    assert len(ids) == count
    assert "perf_tests/test_generate.py::test_generate[tiny.en-4-single-flash]" in ids


@pytest.mark.parametrize("more", [["-q"], []])
def test_collection_names_the_other_groups(more: list[str]) -> None:
    """What runs them is no part of a preset, so a preset's cases alone would hide that they are there."""
    result = run_suite("--collect-only", "--perf-preset", "full", "--perf-device", "cpu", *more)
    lines = [line.split(maxsplit=2) for line in result.stdout.partition("cases of preset full")[2].splitlines()]
    groups = {line[1]: (int(line[0]), line[2]) for line in lines if len(line) == 3 and line[1].startswith("test_")}
    assert groups.pop("test_generate") == (96, "listed above")
    assert groups.pop("test_accuracy") == (21, "with --perf-accuracy")
    assert {how for _, how in groups.values()} == {"with --perf-components"}
    components = run_suite("--collect-only", "-q", "--perf-preset", "full", "--perf-device", "cpu", "--perf-components")
    ids = [line.partition("::")[2].partition("[")[0] for line in components.stdout.splitlines() if "::" in line]
    assert {name: count for name, (count, _) in groups.items()} == {name: ids.count(name) for name in {*ids}}
    assert "96 test_generate      without --perf-components and --perf-accuracy" in components.stdout


def test_collection_names_no_group_that_the_selection_leaves_out() -> None:
    result = run_suite("--collect-only", "-q", "--perf-preset", "full", "--perf-setting", "single")
    assert "48 test_generate" in result.stdout
    assert "--perf-components" not in result.stdout


def test_components_take_the_place_of_generate() -> None:
    result = run_suite("--collect-only", "-q", "--perf-preset", "full", "--perf-components", "--perf-device", "cpu")
    ids = [line for line in result.stdout.splitlines() if "::" in line]
    assert {line.partition("::")[2].partition("[")[0] for line in ids} == {
        "test_attention",
        "test_decode_step",
        "test_encoder",
        "test_load",
        "test_long_form",
        "test_prefill",
        "test_training_step",
    }
    assert "perf_tests/test_components.py::test_decode_step[base.en-6-cache_64-flash]" in ids
    assert "perf_tests/test_components.py::test_attention[large-v3-32-encoder_self_batch_32-eager]" in ids
    assert "perf_tests/test_components.py::test_long_form[large-v3-turbo-4-long_form-original]" in ids
    assert not any("flash_attention_" in line for line in ids)  # for what is not installed nobody asked


def test_collection_imports_no_torch_and_starts_at_once() -> None:
    program = (
        "import sys, pytest;"
        "code = pytest.main(['perf_tests', '--collect-only', '-q', '--perf-preset', 'full']);"
        "loaded = {'torch', 'transformers', 'datasets', 'scipy', 'rich'} & set(sys.modules);"
        "sys.exit(f'loaded {loaded}' if loaded else code)"
    )
    # Seconds of CPU, since this test may share the machine; alone it takes as long by the clock.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = run([sys.executable, "-c", program])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--perf-preset", "swift"], "--perf-preset: 'swift' is unknown; choose from quick, paper, full"),
        (["--perf-checkpoint", "tiny"], "--perf-checkpoint: 'tiny' is unknown"),
        (["--perf-dtype", "int8"], "--perf-dtype: 'int8' is unknown"),
        (["--perf-checkpoint", "tiny.en", "--perf-decoder-layers", "5"], "5 is too many; tiny.en has 4"),
        (["--perf-decoder-layers", "0"], "0 is too few"),
        (["--perf-rounds", "-1"], "-1 is too few"),
        (["--perf-rounds=1.5"], "'1.5' is not a whole number"),
        (["--perf-dataset", "/nowhere/at/all"], "there is no such folder"),
        (["--perf-setting", "batched"], "no cell of preset 'quick'"),
        (["--perf-components", "--perf-setting", "single"], "--perf-setting: 'single' is unknown"),
        (["--perf-components", "--perf-setting", "cache_64_batch_32"], "presets that have one: paper, full"),
        (["--perf-components", "--perf-accuracy"], "one at a time"),
        (["--perf-profile", "README.md"], "not a folder"),
    ],
)
@pytest.mark.parametrize("more", [[], ["-k", "nothing at all", "--collect-only"]])
def test_bad_input_is_one_line_and_exit_code_4(arguments: list[str], words: str, more: list[str]) -> None:
    result = run_suite("--perf-device", "cpu", "--perf-preset", "quick", *arguments, *more)
    output = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    assert result.returncode == USAGE_ERROR
    assert len(output) == 1
    assert output[0].startswith("ERROR: ")
    assert words in output[0]


def test_cuda_without_a_gpu_is_refused() -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has an NVIDIA driver")
    result = run_suite("--perf-device", "cuda")
    assert result.returncode == USAGE_ERROR
    assert result.stderr.strip() == "ERROR: --perf-device cuda: no NVIDIA GPU here; use --perf-device cpu"


def test_a_data_set_that_cannot_be_had_is_refused_before_any_case() -> None:
    result = run_suite("--perf-dataset", "nobody/no-such-data-set", HF_DATASETS_CACHE="/nonexistent")
    assert result.returncode == USAGE_ERROR
    assert "ERROR: --perf-dataset nobody/no-such-data-set: cannot be read" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_a_storage_that_cannot_be_written_is_refused_before_any_case(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run_suite("--benchmark-autosave", f"--benchmark-storage=file://{tmp_path}/file/runs")
    assert result.returncode == USAGE_ERROR
    assert "--benchmark-storage: cannot write" in result.stderr


def test_help_names_the_options() -> None:
    text = run_suite("--help").stdout
    for name in ("preset", "device", "dtype", "rounds", "dataset", "weights"):
        assert f"--perf-{name}" in text
    for name in ("checkpoint", "decoder-layers", "setting", "implementation"):
        assert f"--perf-{name}" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["perf_tests/test_components.py"], "test_components.py: no case of it is selected; give --perf-components"),
        (["perf_tests/test_accuracy.py::test_accuracy"], "give --perf-accuracy"),
        (["perf_tests/test_generate.py", "--perf-components"], "leave out --perf-components"),
    ],
)
def test_a_file_that_was_named_must_have_cases(arguments: list[str], words: str) -> None:
    result = run([sys.executable, "-m", "pytest", "--perf-device", "cpu", *arguments])
    assert result.returncode == USAGE_ERROR
    assert words in result.stdout + result.stderr
