"""Verdicts on runs, and on cases that are not there or did not pass."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perf_tests.matrix.cases import Case
from tests.make_runs import CELL, FLASH, ORIGINAL, bench_of, info_of, make_run, remove, set_outcome, slow_down

from .conftest import Outcome

Compare = Callable[..., Outcome]
Run = dict[str, Any]


def test_unchanged_code_passes(compare: Compare, base: Run, head: Run) -> None:
    outcome = compare(base, head)
    assert outcome.code == 0
    assert outcome.report is not None
    assert outcome.report["verdict"] == "PASS"
    assert outcome.report["exit_code"] == 0
    assert {case["id"]: case["verdict"] for case in outcome.report["cases"]} == {ORIGINAL: "PASS", FLASH: "PASS"}
    assert outcome.report["cases"][0]["reasons"] == []


# Cases that are not there


def test_a_case_that_head_did_not_select_is_missing(compare: Compare, base: Run, head: Run) -> None:
    remove(head, FLASH)
    outcome = compare(base, head)
    assert outcome.code == 1
    assert outcome.report is not None
    assert outcome.report["verdict"] == outcome.verdict(FLASH) == "MISSING"


def test_a_case_that_base_did_not_select_is_new(compare: Compare, base: Run, head: Run) -> None:
    remove(base, FLASH)
    outcome = compare(base, head)
    assert outcome.code == 0
    assert outcome.report is not None
    assert outcome.report["verdict"] == outcome.verdict(FLASH) == "NEW"


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_a_case_that_failed_or_was_skipped_fails(outcome: str, compare: Compare, base: Run, head: Run) -> None:
    set_outcome(head, FLASH, outcome, "no GPU here")
    result = compare(base, head)
    assert result.code == 1
    assert result.verdict(FLASH) == "FAILED"
    assert result.why(FLASH) == f"{outcome} in HEAD: no GPU here"
    set_outcome(base, FLASH, outcome, "nor here")
    assert compare(base, head).code == 1


def test_a_case_that_failed_in_base_alone_is_new(compare: Compare, base: Run, head: Run) -> None:
    set_outcome(base, FLASH, "failed", "parity")
    outcome = compare(base, head)
    assert outcome.code == 0
    assert outcome.verdict(FLASH) == "NEW"
    info_of(head)["parity"]["max_abs_error"] = 1.0
    assert compare(base, head).verdict(FLASH) == "FAILED"


def test_passed_but_nothing_saved_is_missing(compare: Compare, base: Run, head: Run) -> None:
    head["benchmarks"] = [bench for bench in head["benchmarks"] if bench["name"] != FLASH]
    assert compare(base, head).verdict(FLASH) == "MISSING"
    assert compare(head, base).verdict(FLASH) == "NEW"


def test_a_failed_cases_rounds_are_not_looked_at(compare: Compare, base: Run, head: Run) -> None:
    bench_of(head, FLASH)["stats"]["data"] = [math.nan]
    head["perf_cases"][1] |= {"outcome": "failed", "reason": "parity"}
    assert compare(base, head).verdict(FLASH) == "FAILED"


def test_another_benchmark_of_the_session_is_not_judged(compare: Compare, base: Run, head: Run) -> None:
    for run in (base, head):
        run["benchmarks"].append({"name": "test_sort", "stats": {"data": [0.1, 0.2]}, "extra_info": {}})
    outcome = compare(base, head)
    assert outcome.code == 0
    assert outcome.verdict("test_sort") == "AMBIGUOUS"


# Runs


def test_a_runs_verdict_is_its_worst_cases(compare: Compare) -> None:
    chosen = [Case("tiny.en", layers, "single", "flash") for layers in (4, 2)] + [Case(*CELL, "original")]
    base, head = make_run(chosen, seed=1), make_run(chosen, seed=2)
    slow_down(head, 0.8)
    info_of(head, ORIGINAL)["aten_op_count"] += 1
    outcome = compare(base, head)
    assert outcome.code == 1
    assert outcome.report is not None
    assert [case["verdict"] for case in outcome.report["cases"]] == ["IMPROVED", "PASS", "REGRESSED"]
    assert outcome.report["verdict"] == "REGRESSED"


def test_the_same_comparison_gives_the_same_answer(compare: Compare, base: Run, head: Run) -> None:
    assert compare(base, head) == compare(base, head)


def test_only_what_is_asked_for_is_judged(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 1.5)
    assert compare(base, head, "--only", "memory", "--only", "counters").code == 0
    info_of(head)["aten_op_count"] += 1
    assert compare(base, head, "--only", "memory").code == 0
    assert compare(base, head, "--only", "counters").code == 1


def test_the_report_is_strict_json(compare: Compare, base: Run, head: Run, tmp_path: Path) -> None:
    info_of(head)["parity"]["max_abs_error"] = math.nan
    compare(base, head)
    text = (tmp_path / "report.json").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse)["exit_code"] == 1
