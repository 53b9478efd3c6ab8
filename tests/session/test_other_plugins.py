"""Other plugins and options that take a run's timing or saving away, or run a case twice."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import read_run, run, run_suite

from .test_breakage import EAGER, outcomes, run_broken
from .test_run import SMALL, storage

USAGE_ERROR = pytest.ExitCode.USAGE_ERROR
ORIGINAL_ALONE = (*SMALL, "--perf-implementation", "original", "--perf-dataset", "synthetic")
ONE_ROUND = (*ORIGINAL_ALONE, "--perf-rounds", "1")


def refused(result: subprocess.CompletedProcess[str], folder: Path, *words: str) -> None:
    """One line, before the first case: nothing was measured, saved or left behind."""
    assert result.returncode == USAGE_ERROR, result.stdout + result.stderr
    errors = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("ERROR: ")]
    assert len(errors) == 1, result.stdout + result.stderr
    for word in words:
        assert word in errors[0]
    assert "perf: " not in result.stdout
    assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_cases_are_not_handed_to_workers(workers: str, tmp_path: Path) -> None:
    result = run_suite(*ONE_ROUND, "-n", workers, "--benchmark-autosave", storage(tmp_path))
    refused(result, tmp_path, "pytest-xdist: cases that run side by side slow each other", "leave out -n")


def test_ordinary_tests_are() -> None:
    command = [sys.executable, "-m", "pytest", "tests/common/test_intervals.py", "-n", "1", "-p", "no:cacheprovider"]
    result = run(command)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("taken", "asked"),
    [
        ("--benchmark-disable", "--benchmark-autosave"),
        ("--benchmark-disable", "--benchmark-save=mine"),
        ("--benchmark-skip", "--benchmark-json=run.json"),
        ("--benchmark-disable", "--perf-fail-on=main"),
        ("--setup-only", "--benchmark-autosave"),
        ("--setup-plan", "--benchmark-autosave"),
    ],
)
def test_what_takes_timing_away_saves_nothing(
    taken: str, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, baseline: Path
) -> None:
    monkeypatch.setenv("PERF_STORE", str(baseline))
    result = run_suite(*ONE_ROUND, taken, asked, storage(tmp_path / "runs"))
    refused(result, tmp_path, f"{taken}: nothing is timed, and {asked.partition('=')[0]} saves what was")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a baseline called `main`."""
    store = tmp_path_factory.mktemp("store")
    path = store / "baselines" / "main.json"
    path.parent.mkdir()
    result = run_suite(*ORIGINAL_ALONE, "--perf-rounds=3", f"--benchmark-json={path}", plugins=("small_checkpoints",))
    assert result.returncode == 0, result.stdout + result.stderr
    return store


@pytest.mark.parametrize("option", ["--benchmark-disable", "--benchmark-skip"])
def test_a_smoke_run_without_saving_is_welcome(option: str, tmp_path: Path) -> None:
    result = run_suite(*ONE_ROUND, option, storage(tmp_path), plugins=("small_checkpoints",))
    assert result.returncode == 0, result.stdout + result.stderr
    assert not [*tmp_path.rglob("*.json*")]


def test_without_pytest_benchmark_there_are_no_cases(tmp_path: Path) -> None:
    result = run_suite(*ONE_ROUND, "-p", "no:benchmark")
    refused(result, tmp_path, "leave out -p no:benchmark")


def test_without_pytest_benchmark_there_are_tests() -> None:
    command = [sys.executable, "-m", "pytest", "tests/common/test_intervals.py", "-p", "no:benchmark"]
    result = run([*command, "-p", "no:cacheprovider"])
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_case_that_is_selected_twice_is_refused(tmp_path: Path) -> None:
    result = run_suite(*ONE_ROUND, "--benchmark-autosave", storage(tmp_path), plugins=("repeated_cases",))
    refused(result, tmp_path, "test_generate[tiny.en-2-single-original]: selected 2 times", "--perf-rounds")


def test_a_case_that_failed_is_not_measured_again(tmp_path: Path) -> None:
    result = run_broken(tmp_path, "raise", "-p", "tests.plugins.rerun_failures")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "a case runs once; leave out the plugin that runs it again" in result.stdout
    saved = read_run(tmp_path)
    assert outcomes(saved)[EAGER] == "failed"
    assert "a case runs once" not in next(entry["reason"] for entry in saved["perf_cases"] if entry["id"] == EAGER)
    assert [bench["name"] for bench in saved["benchmarks"]] == [name for name in outcomes(saved) if name != EAGER]


def test_a_case_that_ran_elsewhere_has_failed(tmp_path: Path) -> None:
    arguments = (*ONE_ROUND, "--benchmark-autosave", storage(tmp_path))
    result = run_suite(*arguments, plugins=("small_checkpoints", "cases_elsewhere"))
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout + result.stderr
    (entry,) = read_run(tmp_path)["perf_cases"]
    assert entry["outcome"] == "failed"
    assert entry["reason"] == "nothing was measured in this process; leave out what runs cases elsewhere"
