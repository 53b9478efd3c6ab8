"""The README's results come from `results/`, by the command that its marker names."""

import shlex
from pathlib import Path

import pytest

from perf_tests.__main__ import main
from perf_tests.report.gathering import find, gather
from perf_tests.report.readme import END, START, replace_section

from .make_history import make_history

ROOT = Path(__file__).parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "results"


def test_the_results_in_the_readme_are_those_of_results() -> None:
    text = README.read_text(encoding="utf-8")
    machines = gather(find([str(RESULTS)], RESULTS)).machines
    stale = "README.md is stale: python -m perf_tests report results --readme README.md"
    assert replace_section(text, machines, "README.md") == text, stale


def test_how_each_committed_run_was_made_is_told() -> None:
    told = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in RESULTS.glob("*.json") if path.name not in told] == []


def test_only_what_is_between_the_markers_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = make_history(tmp_path / "runs", 1)
    readme = tmp_path / "README.md"
    readme.write_text(f"# before\n{START}\nold\n{END}\nafter\n")
    command = shlex.split(START.split("`")[1])
    assert command[:5] == ["python", "-m", "perf_tests", "report", "results"]
    assert main(["report", str(path), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith(f"# before\n{START}\n\n### A CPU")
    assert text.endswith(f"\n\n{END}\nafter\n")
    assert "old" not in text
    assert main(["report", str(path), "--readme", str(readme)]) == 0
    assert readme.read_text() == text
    capsys.readouterr()


@pytest.mark.parametrize("text", ["nothing", f"{END}\n{START}", f"{START}\n{START}\n{END}"])
def test_without_the_markers_nothing_is_written(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = make_history(tmp_path / "runs", 1)
    readme = tmp_path / "README.md"
    readme.write_text(text)
    assert main(["report", str(path), "--readme", str(readme)]) == 2
    assert readme.read_text() == text
    assert "it needs these two lines" in capsys.readouterr().err
