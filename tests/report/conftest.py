"""Fixtures of the report's tests: the command run in this process, on runs in a folder of the test's own."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from perf_tests.report import command


class Outcome(NamedTuple):
    """What the command did; `html` and `markdown` are what it wrote, if it did."""

    code: int
    out: str
    err: str
    html: str
    markdown: str


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store and a working directory of the test's own, and no checkout whose remote gives links to commits."""
    monkeypatch.setenv("PERF_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("GITHUB_SERVER_URL", raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `report` with the arguments given, `--html` and `--markdown`."""

    def run(*arguments: object) -> Outcome:
        html, markdown = tmp_path / "report.html", tmp_path / "report.md"
        for path in (html, markdown):
            path.unlink(missing_ok=True)
        code = command.main([*map(str, arguments), "--html", str(html), "--markdown", str(markdown)])
        out, err = capsys.readouterr()
        written = [path.read_text(encoding="utf-8") if path.exists() else "" for path in (html, markdown)]
        return Outcome(code, out, err, *written)

    return run
