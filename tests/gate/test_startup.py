"""The gate runs anywhere: in a process of its own, without torch, and scipy only for what needs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.make_runs import make_run, save

ROOT = Path(__file__).parents[2]
PROBE = """
import sys
from perf_tests.__main__ import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
heavy = [name for name in ("torch", "transformers", "whisper_flash_attention", "scipy", "numpy") if name in sys.modules]
print("heavy:", *heavy, file=sys.stderr)
sys.exit(code)
"""


def run_probe(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["compare", "--help"], 0),
        (["promote", "--help"], 0),
        (["merge", "--help"], 0),
        (["report", "--help"], 0),
        (["report"], 2),
        (["compare", "latest", "nobody"], 2),
        (["promote", "latest", "main"], 2),
    ],
)
def test_help_and_refusals_import_nothing_heavy(arguments: list[str], code: int) -> None:
    result = run_probe(*arguments)
    assert result.returncode == code
    assert result.stderr.splitlines()[-1] == "heavy:"
    assert "Traceback" not in result.stderr


def test_a_comparison_imports_no_torch(tmp_path: Path) -> None:
    paths = [save(make_run(seed=seed), tmp_path / f"{seed}.json") for seed in (1, 2)]
    result = run_probe("compare", *paths)
    assert result.returncode == 0, result.stderr
    assert result.stderr.split() == ["heavy:", "numpy"]
    assert result.stdout.startswith("PASS: 2 of 2 cases pass")


def test_a_report_imports_no_torch(tmp_path: Path) -> None:
    path = save(make_run(), tmp_path / "run.json")
    result = run_probe("report", path, "--markdown", tmp_path / "report.md")
    assert result.returncode == 0, result.stderr
    assert result.stderr.split() == ["heavy:"]
    result = run_probe("report", path, "--html", tmp_path / "report.html")
    assert result.returncode == 0, result.stderr
    assert "torch" not in result.stderr


def test_exact_numbers_need_no_scipy(tmp_path: Path) -> None:
    paths = [save(make_run(seed=seed), tmp_path / f"{seed}.json") for seed in (1, 2)]
    result = run_probe("compare", *paths, "--only", "counters")
    assert result.returncode == 0, result.stderr
    assert result.stderr.split() == ["heavy:"]


def test_nobody_reads_on(tmp_path: Path) -> None:
    paths = [save(make_run(seed=seed), tmp_path / f"{seed}.json") for seed in (1, 2)]
    process = subprocess.Popen(
        [sys.executable, "-m", "perf_tests", "compare", *map(str, paths), "--only", "memory"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()
