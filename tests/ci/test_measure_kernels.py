"""`results/measure_kernels.py`, the whole of it in miniature: nothing else calls the package's own parts as it does."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "results" / "measure_kernels.py"
# What a CPU has no kernel for. All else must have a figure in every row.
NONE_ON_A_CPU = {"xFormers", "cudnn", "efficient"}


def test_every_row_has_its_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("measure_kernels", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "FRAMES", 20)
    monkeypatch.setattr(sys, "argv", ["measure_kernels.py", "--device", "cpu", "--small"])
    script.main()
    tables: list[list[list[str]]] = []
    for line in capsys.readouterr().out.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith(("| d ", "| (")):
            tables[-1].append(cells)
        elif line.startswith("| "):
            tables.append([cells])
    names = ["encoder", "self-attention", "cross-attention", "linear", "a decoding step"]
    assert [table[0][0].startswith(name) for table, name in zip(tables, names, strict=True)] == [True] * len(names)
    for head, *rows in tables:
        assert len(rows) >= 2
        for row in rows:
            figures = dict(zip(head[1:], row[1:], strict=True))
            assert {column for column, figure in figures.items() if figure == "-"} <= NONE_ON_A_CPU, (head[0], row)
