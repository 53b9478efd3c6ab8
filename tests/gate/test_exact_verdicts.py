"""Verdicts on memory, counters and parity."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.make_runs import FLASH, ORIGINAL, info_of, make_cuda, slow_down

from .conftest import Outcome

Compare = Callable[..., Outcome]
Run = dict[str, Any]


@pytest.mark.parametrize("metric", ["peak_memory_allocated_bytes", "model_memory_bytes"])
@pytest.mark.parametrize("name", [ORIGINAL, FLASH])
def test_memory_may_grow_by_1_percent(metric: str, name: str, compare: Compare, base: Run, head: Run) -> None:
    info = info_of(head, name)
    before = info[metric]
    info[metric] = math.floor(before * 1.01)
    assert compare(base, head).verdict(name) == "PASS"
    info[metric] = math.ceil(before * 1.01) + 1
    outcome = compare(base, head)
    assert outcome.code == 1
    assert outcome.verdict(name) == "REGRESSED"
    assert outcome.why(name).startswith(f"{metric} +1.0 %")
    assert compare(base, head, "--memory-threshold", "2").code == 0


@pytest.mark.parametrize("metric", ["aten_op_count", "flop_count"])
def test_counters_may_not_grow_by_one(metric: str, compare: Compare, base: Run, head: Run) -> None:
    info_of(head)[metric] += 1
    outcome = compare(base, head)
    assert outcome.code == 1
    assert outcome.verdict(FLASH) == "REGRESSED"
    assert metric in outcome.why(FLASH)
    assert compare(base, head, "--counters-threshold", "1").code == 0


@pytest.mark.parametrize("metric", ["kernel_launch_count", "host_sync_count"])
def test_counters_of_a_gpu(metric: str, compare: Compare, base: Run, head: Run) -> None:
    make_cuda(base)
    make_cuda(head)
    assert compare(base, head).code == 0
    info_of(head)[metric] += 1
    assert metric in compare(base, head).why(FLASH)
    info_of(base)[metric], info_of(head)[metric] = 0, 1
    assert "up from 0" in compare(base, head).why(FLASH)


def test_reserved_memory_comes_in_segments(compare: Compare, base: Run, head: Run) -> None:
    make_cuda(base)
    info = info_of(make_cuda(head))
    info["peak_memory_reserved_bytes"] += 20 * 1024 * 1024
    assert compare(base, head).verdict(FLASH) == "PASS"
    info["peak_memory_reserved_bytes"] += 2 * 1024 * 1024
    assert compare(base, head).verdict(FLASH) == "REGRESSED"


def test_less_is_an_improvement(compare: Compare, base: Run, head: Run) -> None:
    info_of(head)["peak_memory_allocated_bytes"] //= 2
    info_of(head, ORIGINAL)["aten_op_count"] -= 1
    outcome = compare(base, head)
    assert outcome.code == 0
    assert outcome.report is not None
    assert outcome.report["verdict"] == outcome.verdict(FLASH) == outcome.verdict(ORIGINAL) == "IMPROVED"


def test_a_metric_that_is_no_longer_recorded_is_missing(compare: Compare, base: Run, head: Run) -> None:
    info_of(head)["aten_op_count"] = None
    outcome = compare(base, head)
    assert outcome.code == 1
    assert outcome.verdict(FLASH) == "MISSING"
    assert "aten_op_count: recorded by BASE, not by HEAD" in outcome.why(FLASH)
    assert compare(head, base).code == 0


def test_a_metric_that_neither_run_recorded_is_no_pass(compare: Compare, base: Run, head: Run) -> None:
    del info_of(base)["peak_memory_allocated_bytes"], info_of(head)["peak_memory_allocated_bytes"]
    assert compare(base, head).verdict(FLASH) == "AMBIGUOUS"


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


ACCEPT = """
[[tool.perf_tests.accept]]
case = "test_generate[tiny.en-4-*-flash]"
metric = "peak_memory_allocated_bytes"
limit = 4
reason = "keeps [red]keys[/red] in float32"
"""


def test_accepted_growth_passes_and_is_shown(compare: Compare, base: Run, head: Run, tmp_path: Path) -> None:
    info = info_of(head)
    info["peak_memory_allocated_bytes"] = int(info["peak_memory_allocated_bytes"] * 1.03)
    path = config(tmp_path, ACCEPT)
    markdown = tmp_path / "report.md"
    outcome = compare(base, head, "--config", path, "--markdown", markdown)
    assert outcome.code == 0
    assert outcome.verdict(FLASH) == "PASS"
    assert "keeps [red]keys[/red] in float32" in outcome.why(FLASH)
    assert "accepted: " in outcome.out
    assert "keeps [red]keys[/red] in float32" in outcome.out
    assert "accepted: " in markdown.read_text()
    info["peak_memory_allocated_bytes"] = int(info["peak_memory_allocated_bytes"] * 1.03)
    assert compare(base, head, "--config", path).code == 1


def test_growth_is_accepted_for_its_cases_and_metric_alone(
    compare: Compare, base: Run, head: Run, tmp_path: Path
) -> None:
    path = config(tmp_path, ACCEPT)
    info_of(head)["aten_op_count"] += 1
    assert compare(base, head, "--config", path).code == 1
    info_of(head)["aten_op_count"] -= 1
    info_of(head, ORIGINAL)["peak_memory_allocated_bytes"] += 5_000_000
    assert compare(base, head, "--config", path).code == 1


def test_thresholds_by_case_pattern(compare: Compare, base: Run, head: Run, tmp_path: Path) -> None:
    slow_down(head, 1.06)
    entry = '[[tool.perf_tests.thresholds]]\ncase = "tiny.en-*-flash"\nmetric = "time"\npercent = 10\n'
    path = config(tmp_path, entry)
    assert compare(base, head, "--config", path).verdict(FLASH) == "PASS"
    assert compare(base, head, "--config", path, "--time-threshold", "3").verdict(FLASH) == "REGRESSED"
    path.write_text(entry.replace("flash", "eager"))
    assert compare(base, head, "--config", path).verdict(FLASH) == "REGRESSED"


def test_the_pyproject_of_the_current_directory_counts(compare: Compare, base: Run, head: Run) -> None:
    info_of(head)["peak_memory_allocated_bytes"] += 5_000_000
    assert compare(base, head).code == 1
    Path("pyproject.toml").write_text(ACCEPT)
    assert compare(base, head).code == 0


# Parity


def test_an_error_past_its_bound_regressed(compare: Compare, base: Run, head: Run) -> None:
    parity = info_of(head)["parity"]
    parity["max_abs_error"] = 2 * parity["bound"]
    outcome = compare(base, head)
    assert outcome.code == 1
    assert outcome.verdict(FLASH) == "REGRESSED"
    assert "past its bound" in outcome.why(FLASH)


def test_a_bound_that_was_loosened_does_not_help(compare: Compare, base: Run, head: Run) -> None:
    parity = info_of(head)["parity"]
    parity |= {"max_abs_error": 2 * parity["bound"], "bound": 4 * parity["bound"]}
    assert "past BASE's bound" in compare(base, head).why(FLASH)


def test_a_larger_error_within_its_bound_passes(compare: Compare, base: Run, head: Run) -> None:
    info_of(head)["parity"]["max_abs_error"] *= 3
    assert compare(base, head).verdict(FLASH) == "PASS"


def test_an_error_that_is_no_number_regressed(compare: Compare, base: Run, head: Run) -> None:
    info_of(head)["parity"]["max_abs_error"] = math.nan
    assert compare(base, head).verdict(FLASH) == "REGRESSED"


def test_other_tokens_are_a_regression_in_float32_only(compare: Compare, base: Run, head: Run) -> None:
    info_of(head)["parity"]["tokens_equal"] = False
    assert compare(base, head).verdict(FLASH) == "REGRESSED"
    assert compare(make_cuda(base), make_cuda(head)).verdict(FLASH) == "PASS"
    info_of(head)["parity"] |= {"token_regret": 0.3, "token_regret_bound": 0.2}
    assert compare(base, head).verdict(FLASH) == "REGRESSED"


def test_parity_that_is_no_longer_recorded_is_missing(compare: Compare, base: Run, head: Run) -> None:
    info_of(head)["parity"] = None
    assert compare(base, head).verdict(FLASH) == "MISSING"
