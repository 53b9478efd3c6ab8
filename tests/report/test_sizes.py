"""Large histories and large runs: what they take is held here where it is exact; docs/running.md has the seconds."""

import sys
from pathlib import Path

import pytest

from perf_tests.matrix.cases import CHECKPOINTS, Case
from tests.make_runs import make_run, save
from tests.running import run

from .make_history import make_history

MOST_MEGABYTES = 500
# What the system calls a child's peak includes what its parent had when it was made: the process asks for its own.
PROBE = """
import contextlib, io, re, sys
from pathlib import Path
from perf_tests.__main__ import main

with contextlib.redirect_stdout(io.StringIO()):
    code = main(sys.argv[1:])
print(code, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="a process's own peak is read from Linux's /proc"),
]


def peak_megabytes(command: list[str], folder: Path) -> float:
    """The peak of a command in a process of its own, which must end well."""
    done = run([sys.executable, "-c", PROBE, *command], cwd=folder, PERF_STORE=str(folder / "store"))
    code, kilobytes = done.stdout.split()
    assert code == "0", done.stderr
    return int(kilobytes) * 1024 / 1e6


def test_a_history_of_a_thousand_runs_fits(tmp_path: Path) -> None:
    cases = [
        Case(name, 2, "single", implementation) for name in CHECKPOINTS for implementation in ("original", "flash")
    ]
    make_history(tmp_path / "runs", 1000, cases, rounds=100, step=(700, 1.1), distinct=20)
    assert peak_megabytes(["report", "runs", "--html", "page.html"], tmp_path) < MOST_MEGABYTES


def test_two_runs_of_five_hundred_cases_fit(tmp_path: Path) -> None:
    cases = [Case(f"name-{number}", 2, "single", "flash") for number in range(500)]
    paths = [str(save(make_run(cases, seed=seed, rounds=20), tmp_path / f"{seed}.json")) for seed in (1, 2)]
    assert peak_megabytes(["compare", *paths], tmp_path) < MOST_MEGABYTES
