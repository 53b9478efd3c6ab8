"""`benchmark_flash_attention.py`: the one-file benchmark of 2023, as a front to the suite."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

import benchmark_flash_attention as front
from perf_tests.matrix.cases import Case
from perf_tests.report.gathering import Found, gather
from perf_tests.report.rows import rows_of
from perf_tests.report.spreadsheet import COLUMNS, write_spreadsheets
from tests.make_runs import make_counted, make_run, save
from tests.running import ROOT, run

SMALL = ("--checkpoint", "tiny.en", "--decoder-layers", "2", "--setting", "single", "--rounds", "2", "--device", "cpu")


def test_it_measures_prints_and_writes(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    command = [sys.executable, "benchmark_flash_attention.py", *SMALL, "--output", str(folder)]
    result = run([*command, "--", "-p", "tests.plugins.small_checkpoints", "-p", "no:cacheprovider"])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| Checkpoint | Dec layers | Memory Orig / GB |" in result.stdout
    assert result.stdout.count("tiny.en-2-single-") >= 2  # the progress
    names = ["run.json", "single-flash.csv", "single-original.csv", "tables.md"]
    assert sorted(path.name for path in folder.iterdir()) == names
    header, row = csv.reader((folder / "single-flash.csv").read_text().splitlines())
    assert header == ["Checkpoint", "Dec layers", "Params / M", "Compression / %", "VRAM / GB", "Runtime / s"]
    assert row[:2] == ["tiny.en", "2"]
    assert float(row[5]) > 0
    assert (folder / "tables.md").read_text() in result.stdout


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "benchmark_flash_attention.py", *SMALL, "--output", str(tmp_path)]
    result = run([*command, "--", "--no-such-option"])
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("benchmark_flash_attention.py: nothing was measured")


def test_compression_is_relative_to_the_whole_decoder(tmp_path: Path) -> None:
    cases = [Case("tiny.en", layers, "batched", "original") for layers in (4, 2)]
    document = make_run(cases, rounds=3)
    for bench, count in zip(document["benchmarks"], (40_000_000, 30_000_000), strict=True):
        bench["extra_info"]["parameter_count"] = count
        bench["stats"]["data"] = [1.0, 2.0, 3.0]
    path = save(document, tmp_path / "run.json")
    (machine,) = gather([Found(path, path.name)]).machines
    (written,) = write_spreadsheets(rows_of(machine.shown), tmp_path)
    assert [*csv.reader(written.read_text().splitlines())] == [
        [*COLUMNS],
        ["tiny.en", "4", "40.0", "0.0", "0.180", "20.00"],
        ["tiny.en", "2", "30.0", "25.0", "0.180", "20.00"],
    ]


def test_what_was_counted_is_in_columns_of_its_own(tmp_path: Path) -> None:
    document = make_counted(make_run([Case("tiny.en", 4, "single", "flash")]))
    path = save(document, tmp_path / "run.json")
    (machine,) = gather([Found(path, path.name)]).machines
    (written,) = write_spreadsheets(rows_of(machine.shown), tmp_path)
    assert [*csv.reader(written.read_text().splitlines())] == [
        [*COLUMNS, "ATen ops", "FLOPs"],
        ["tiny.en", "4", "37.8", "0.0", "0.180", "", "5451", "42183462912"],
    ]


@pytest.mark.parametrize(
    ("arguments", "preset"),
    [
        ([], "quick"),
        (["--setting", "single"], "quick"),
        (["--setting", "batched"], "paper"),
        (["--checkpoint", "large-v3-turbo"], "full"),
    ],
)
def test_the_smallest_preset_that_has_the_cells_is_taken(arguments: list[str], preset: str) -> None:
    options = front.parse([*arguments, "--device", "cpu"])
    assert front.choose_preset(options) == preset


def test_a_gpu_does_all_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "nvidia_driver_present", lambda: True)
    assert front.choose_preset(front.parse([])) == "paper"
    assert front.choose_preset(front.parse(["--device", "cpu"])) == "quick"


@pytest.mark.parametrize("arguments", [["--setting", "x"], ["--checkpoint", "tiny.en", "--decoder-layers", "9"]])
def test_refusals_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmark_flash_attention.py: ")
    assert error.count("\n") == 1


def test_help_imports_no_torch() -> None:
    probe = "import sys, runpy\ntry:\n runpy.run_path('benchmark_flash_attention.py', run_name='__main__')\nfinally:\n"
    probe += " print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", probe, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.splitlines()[-1] == "False"
    assert "the columns of\n2023" in result.stdout
