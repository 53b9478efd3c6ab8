"""Large histories and large runs: what they take is held here where it is exact; docs/running.md has the seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perf_tests.matrix.cases import CHECKPOINTS, Case
from tests.make_runs import make_run, save
from tests.running import ROOT

from .make_history import make_history

MOST_MEGABYTES = 500


def peak_megabytes(command: list[str], folder: Path) -> float:
    """The peak of a process of its own, which must end well."""
    process = subprocess.Popen(
        [sys.executable, "-m", "perf_tests", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PERF_STORE": str(folder / "store")},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


@pytest.mark.slow
def test_a_history_of_a_thousand_runs_fits(tmp_path: Path) -> None:
    cases = [
        Case(name, 2, "single", implementation) for name in CHECKPOINTS for implementation in ("original", "flash")
    ]
    make_history(tmp_path / "runs", 1000, cases, rounds=100, step=(700, 1.1), distinct=20)
    assert peak_megabytes(["report", "runs", "--html", "page.html"], tmp_path) < MOST_MEGABYTES


@pytest.mark.slow
def test_two_runs_of_five_hundred_cases_fit(tmp_path: Path) -> None:
    cases = [Case(f"name-{number}", 2, "single", "flash") for number in range(500)]
    paths = [str(save(make_run(cases, seed=seed, rounds=20), tmp_path / f"{seed}.json")) for seed in (1, 2)]
    assert peak_megabytes(["compare", *paths], tmp_path) < MOST_MEGABYTES
