"""`compare --explain`: from a verdict to the operators behind it."""

from collections.abc import Callable

import pytest

from perf_tests.matrix.cases import Case
from tests.make_runs import CELL, FLASH, ORIGINAL, info_of, make_counted, make_run

from .conftest import Outcome

CASES = [Case(*CELL, "original"), Case(*CELL, "flash")]


@pytest.fixture
def runs() -> tuple[dict, dict]:
    """Two runs alike, with operators by name and their shares."""
    base, head = make_run(CASES, seed=1), make_run(CASES, seed=2)
    for run in (base, head):
        for name in (ORIGINAL, FLASH):
            info_of(run, name)["op_counts"] = {"aten.mm": 100, "aten.view": 50}
            info_of(run, name)["op_shares"] = {"aten::mm": 0.8, "aten::view": 0.1}
    return base, head


def test_operators_that_came_and_went(runs: tuple[dict, dict], compare: Callable[..., Outcome]) -> None:
    base, head = runs
    info = info_of(head, FLASH)
    info["aten_op_count"] += 300
    info["op_counts"] = {"aten.mm": 100, "aten.cat": 350}
    info["op_shares"] = {"aten::mm": 0.6, "aten::cat": 0.3, "aten::view": 0.105}
    outcome = compare(base, head, "--explain", "--only", "counters")
    assert outcome.code == 1
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert "calls 0 → 350 (+350) aten.cat" in lines
    assert "calls 50 → 0 (-50) aten.view" in lines
    assert "share 0.0% → 30.0% (+30.0) aten::cat" in lines
    assert not any("aten::view" in line for line in lines)  # half a percent is noise
    assert lines.index("calls 0 → 350 (+350) aten.cat") > next(i for i, line in enumerate(lines) if FLASH in line)
    cases = {case["id"]: case["explanation"] for case in outcome.report["cases"]}
    assert cases[FLASH]["counts"][0] == {"operator": "aten.cat", "base": 0, "head": 350}
    assert cases[ORIGINAL] == {"counts": [], "shares": [], "missing": []}


def test_counts_that_moved_while_their_sum_did_not(runs: tuple[dict, dict], compare: Callable[..., Outcome]) -> None:
    """A PASS whose operators changed is told too."""
    base, head = runs
    info_of(head, FLASH)["op_counts"] = {"aten.mm": 90, "aten.view": 60}
    outcome = compare(base, head, "--explain", "--only", "counters")
    assert outcome.code == 0
    assert "100 → 90 (-10)" in outcome.out


def test_runs_that_were_only_counted(runs: tuple[dict, dict], compare: Callable[..., Outcome]) -> None:
    base, head = map(make_counted, runs)
    info_of(head, FLASH)["op_counts"] = {"aten.mm": 90, "aten.view": 60}
    assert "100 → 90 (-10)" in compare(base, head, "--explain").out


def test_without_the_option_nothing_is_explained(runs: tuple[dict, dict], compare: Callable[..., Outcome]) -> None:
    base, head = runs
    info_of(head, FLASH)["op_counts"] = {"aten.mm": 90, "aten.view": 60}
    outcome = compare(base, head, "--only", "counters")
    assert "aten.mm" not in outcome.out
    assert not any("explanation" in case for case in outcome.report["cases"])


@pytest.mark.parametrize(
    "broken", [None, "text", [1], {"aten.mm": "many"}, {"aten.mm": float("nan")}, {"aten.mm": True}]
)
def test_what_cannot_be_read_is_left_out(
    broken: object, runs: tuple[dict, dict], compare: Callable[..., Outcome]
) -> None:
    base, head = runs
    info_of(head, FLASH)["op_counts"] = broken
    info_of(head, FLASH)["aten_op_count"] += 1
    outcome = compare(base, head, "--explain", "--only", "counters")
    assert outcome.code == 1
    if not isinstance(broken, dict):
        assert "operators by name were not recorded by both runs" in outcome.out
