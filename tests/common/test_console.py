"""Consoles that are not UTF-8: every line comes out, and can be read."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perf_tests.common.console import show_everywhere
from perf_tests.matrix.cases import Case
from tests.make_runs import CELL, FLASH, info_of, make_run, save, slow_down
from tests.running import ROOT, run_suite

ENCODINGS = ["ascii", "cp1252", "latin-1"]


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "~ 0.81 x 1.00 -> 40 C ... ---|+| J\\xfcrgen \\u5f35"),
        ("cp1252", "~ 0.81 \N{MULTIPLICATION SIGN} 1.00 -> 40 °C … ---|+| Jürgen \\u5f35"),
        ("utf-8", "≈ 0.81 \N{MULTIPLICATION SIGN} 1.00 → 40 °C … ─━═│┼║ Jürgen 張"),
    ],
)
def test_what_an_encoding_lacks_is_written_in_ascii(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, newline="\n"))
    show_everywhere()
    print("≈ 0.81 \N{MULTIPLICATION SIGN} 1.00 → 40 °C … ─━═│┼║ Jürgen 張", flush=True)
    assert raw.getvalue().decode(encoding) == shown + "\n"


def test_who_says_what_becomes_of_it_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="replace"))
    show_everywhere()
    print("≈", end="", flush=True)
    assert raw.getvalue() == b"?"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_comes_out(encoding: str, tmp_path: Path) -> None:
    chosen = [Case(*CELL, name) for name in ("original", "eager", "flash")]
    base, head = make_run(chosen, seed=1), make_run(chosen, seed=2)
    slow_down(head, 1.3)
    info_of(head)["aten_op_count"] += 25
    runs = [str(save(run, tmp_path / name)) for run, name in ((base, "base.json"), (head, "hëad…→.json"))]
    page = tmp_path / "page.html"
    said = {}
    for words in (
        ("--help",),
        ("compare", *runs),
        ("compare", "nöbody", runs[0]),
        ("report", runs[0]),
        ("report", *runs, "--html", str(page)),
    ):
        result = run_raw("-m", "perf_tests", *words, encoding=encoding)
        assert result.returncode == (words[0] == "compare") * (1 if runs[1] in words else 2), result.stderr
        said[words] = result.stdout + result.stderr
        assert "Traceback" not in result.stderr
    report = said["report", runs[0]]
    assert "| tiny.en    |" in report
    assert " ~ 0.8" in report
    comparison = said["compare", *runs]
    assert comparison.startswith("REGRESSED")
    table = [line for line in comparison.splitlines() if line.startswith(("REGRESSED", "PASS")) and FLASH in line]
    assert table, comparison
    assert "5,451 -> 5,476" in comparison
    # Files are UTF-8 whatever the console is.
    assert "…" in page.read_text(encoding="utf-8")


def run_raw(*arguments: str, encoding: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a console of `encoding`, and read what it wrote as that."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        encoding=encoding,
        check=False,
    )


def test_the_tables_of_a_run_keep_their_lines(tmp_path: Path) -> None:
    arguments = ("--perf-checkpoint", "tiny.en", "--perf-decoder-layers", "2", "--perf-device", "cpu")
    arguments += ("--perf-dataset", "synthetic", "--perf-implementation", "original", "--perf-rounds", "1")
    arguments += (f"--benchmark-json={tmp_path}/rün….json",)
    result = run_suite(*arguments, plugins=("small_checkpoints",), PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith(" case ") and line.rstrip().endswith("error / allowed")], lines
    assert [line for line in lines if line.startswith(" tiny.en-2-single-original ")]
    assert "\\u2500" not in result.stdout
    assert "\\n" not in result.stdout
    assert [*tmp_path.glob("r*n….json")]
