"""What people read: the terminal and the Markdown, also where a JSON holds text that is meant to do harm."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perf_tests.common.console import IN_ASCII
from perf_tests.common.text import clean, escape_markdown
from perf_tests.gate.comparison import compare_runs
from perf_tests.gate.terminal import print_comparison
from perf_tests.gate.thresholds import Rules
from perf_tests.matrix.cases import Case
from perf_tests.runs.saved import parse_run
from tests.make_runs import CELL, FLASH, ORIGINAL, info_of, make_run, set_outcome, slow_down

from .conftest import Outcome

Run = dict[str, Any]
EVIL = "[red]x[/red] | `rm` <script>\n# @team #1 https://evil.example www.evil.example \x1b[31m\x07\ud800 *b* [a](b)"


def test_the_terminal_leads_with_what_is_wrong(compare: Callable[..., Outcome]) -> None:
    chosen = [Case("tiny.en", layers, "single", name) for layers in (4, 2) for name in ("original", "flash")]
    base, head = make_run(chosen, seed=1), make_run(chosen, seed=2)
    slow_down(head, 1.1, "test_generate[tiny.en-2-single-flash]")
    lines = compare(base, head).out.splitlines()
    assert lines[0] == "REGRESSED: 1 of 4 cases regressed, 3 pass"
    assert lines[3].split() == ["REGRESSED", "test_generate[tiny.en-2-single-flash]"]
    assert lines[4].strip().startswith("time +")
    rows = [line.split()[:2] for line in lines if " test_generate[" in line and "%" in line]
    assert rows[0] == ["REGRESSED", "test_generate[tiny.en-2-single-flash]"]
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("before", "after", "shown"), [(0.9, 0.1, "0.90 → 0.10"), (None, 0.4, "0.40"), (0.4, None, "0.40")]
)
def test_the_fraction_of_the_limit_is_shown_and_not_judged(
    before: float | None, after: float | None, shown: str, compare: Callable[..., Outcome]
) -> None:
    base, head = make_run(seed=1), make_run(seed=2)
    assert "of limit" not in compare(base, head).out
    info_of(base, FLASH)["fraction_of_limit"], info_of(head, FLASH)["fraction_of_limit"] = before, after
    outcome = compare(base, head)
    assert outcome.code == 0
    assert (outcome.verdict(FLASH), outcome.case(FLASH)["reasons"]) == ("PASS", [])
    (metric,) = (found for found in outcome.case(FLASH)["metrics"] if found["metric"] == "fraction_of_limit")
    assert (metric["base"], metric["head"], metric["verdict"]) == (before, after, None)
    (row,) = (line for line in outcome.out.splitlines() if line.lstrip().startswith("PASS") and FLASH in line)
    assert row.rstrip().endswith(shown)


def evil_run(seed: int) -> Run:
    """A run whose case names and texts are meant to do harm."""
    run = make_run([Case(*CELL, "original"), Case(*CELL, "flash"), Case("tiny.en", 2, "single", "flash")], seed=seed)
    run["commit_info"]["id"], run["datetime"] = EVIL, EVIL
    run["benchmarks"][2]["name"] = run["perf_cases"][2]["id"] = EVIL
    info_of(run, EVIL)["control"]["implementation"] = EVIL + str(seed)
    return run


def test_text_of_a_json_does_no_harm(compare: Callable[..., Outcome], tmp_path: Path) -> None:
    base, head = evil_run(1), evil_run(2)
    set_outcome(head, FLASH, "failed", EVIL)
    markdown = tmp_path / "report.md"
    outcome = compare(base, head, "--markdown", markdown)
    assert outcome.code == 1
    assert "[red]x[/red]" in outcome.out
    assert all(character.isprintable() or character == "\n" for character in outcome.out)
    text = markdown.read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "@team" not in text
    assert "https://" not in text
    assert "www." not in text
    assert "#1" not in text
    assert "\x1b" not in text
    for line in text.splitlines():
        if line.startswith("|"):
            columns = line.replace("\\|", "").count("|") - 1
            assert columns in (3, 7)


def test_markdown_shows_what_was_meant() -> None:
    assert escape_markdown("a_b*c|d`e`<f>[g](h)") == r"a\_b\*c\|d\`e\`&lt;f&gt;\[g\](h)"
    assert escape_markdown("test_generate[tiny.en-4]") == r"test\_generate\[tiny.en-4\]"


def test_clean_text_is_one_printable_line() -> None:
    assert clean("a\nb\x1b[0m\ud800\U000e0001") == "a b\\x1b[0m\\ud800\\U000e0001"
    assert len(clean("x" * 1000)) == 300


def test_markdown_leads_with_what_is_wrong(
    compare: Callable[..., Outcome], base: Run, head: Run, tmp_path: Path
) -> None:
    info_of(head)["aten_op_count"] += 25
    compare(base, head, "--markdown", tmp_path / "report.md", "--note", "BASE is <b>old")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("### REGRESSED: 1 of 2 cases regressed, 1 pass")
    assert "**REGRESSED**" in text
    assert r"aten\_op\_count +0.5 % (5,451 → 5,476), allowed +0.0 %" in text
    assert text.index("**REGRESSED**") < text.index("- BASE is &lt;b&gt;old") < text.index("<details>")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("colour", [True, False])
def test_any_terminal_will_do(encoding: str, colour: bool, base: Run, head: Run) -> None:
    info_of(head)["aten_op_count"] += 25
    comparison = compare_runs(parse_run(base, "base"), parse_run(head, "[bold]head"), Rules())
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors=IN_ASCII)
    print_comparison(comparison, file, colour=colour)
    file.flush()
    text = raw.getvalue().decode(encoding)
    assert "[bold]head" in text
    assert ("\x1b[" in text) == colour
    assert ORIGINAL in text
