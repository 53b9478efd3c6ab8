"""Fixtures of the gate's tests: two runs of unchanged code, and the commands run on them in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from perf_tests.gate import command
from tests.make_runs import make_run, save


class Outcome(NamedTuple):
    """What a command did; `report` is its JSON, if it wrote one."""

    code: int
    out: str
    err: str
    report: dict[str, Any] | None

    def verdict(self, case_id: str) -> str:
        return self.case(case_id)["verdict"]

    def case(self, case_id: str) -> dict[str, Any]:
        assert self.report is not None, self.err
        return next(case for case in self.report["cases"] if case["id"] == case_id)

    def why(self, case_id: str) -> str:
        return "; ".join(self.case(case_id)["reasons"])


def refused(outcome: Outcome, *words: str) -> None:
    """Exit 2, one line that has the words, and a report that says the same."""
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err
    if outcome.report is not None:
        assert (outcome.report["verdict"], outcome.report["exit_code"]) == ("REFUSED", 2)
        assert outcome.report["cases"] == []


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store and a working directory of the test's own."""
    monkeypatch.setenv("PERF_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "400")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def base() -> dict[str, Any]:
    return make_run(seed=1)


@pytest.fixture
def head() -> dict[str, Any]:
    """A second run, of a package that does the same."""
    return make_run(seed=2)


@pytest.fixture
def run_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `compare` with the arguments given, and `--json`."""

    def run(*arguments: object) -> Outcome:
        report = tmp_path / "report.json"
        report.unlink(missing_ok=True)
        code = command.main([*map(str, arguments), "--json", str(report)])
        out, err = capsys.readouterr()
        return Outcome(code, out, err, json.loads(report.read_text()) if report.exists() else None)

    return run


@pytest.fixture
def compare(tmp_path: Path, run_compare: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Saves two runs and compares them."""

    def run(base: object, head: object, *arguments: object) -> Outcome:
        paths = save(base, tmp_path / "base.json"), save(head, tmp_path / "head.json")
        return run_compare(*paths, *arguments)

    return run
