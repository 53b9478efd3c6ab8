"""Every verdict, from two saved runs to exit code."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perf_tests.cases import Case
from perf_tests.regression.calibration import calibration_path
from perf_tests.regression.fingerprint import fingerprint_of
from perf_tests.regression.thresholds import FOREIGN_LOAD_CORES
from perf_tests.table import FOREIGN_LOAD_CORES as LOAD_IN_THE_SUITES_TABLE

from .conftest import Outcome
from .make_runs import (
    CELL,
    FLASH,
    ORIGINAL,
    bench_of,
    info_of,
    make_cuda,
    make_run,
    remove,
    save,
    set_outcome,
    slow_down,
)

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


# Time


def test_a_slower_flash_regressed(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 1.06)
    outcome = compare(base, head)
    assert outcome.code == 1
    assert outcome.report is not None
    assert outcome.report["verdict"] == outcome.verdict(FLASH) == "REGRESSED"
    assert outcome.verdict(ORIGINAL) == "PASS"
    time = next(m for m in outcome.case(FLASH)["metrics"] if m["metric"] == "time")
    assert time["low"] < time["change"] < time["high"]
    assert time["change"] == pytest.approx(0.06, abs=0.015)
    assert time["allowed"] == 0.03
    assert "time +" in outcome.why(FLASH)


def test_a_faster_flash_improved(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 0.9)
    outcome = compare(base, head)
    assert outcome.code == 0
    assert outcome.verdict(FLASH) == "IMPROVED"
    assert outcome.report is not None
    assert outcome.report["verdict"] == "PASS"  # the worst case's


def test_drift_of_the_machine_is_corrected_for(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 1.12)
    control = info_of(head)["control"]
    control["rounds_seconds"] = [seconds * 1.12 for seconds in control["rounds_seconds"]]
    slow_down(head, 1.12, ORIGINAL)
    outcome = compare(base, head)
    assert outcome.code == 0
    assert outcome.verdict(FLASH) == "PASS"
    assert outcome.verdict(ORIGINAL) == "PASS"  # no control: its time is for information
    assert "original's uncorrected times moved by +1" in outcome.out


def test_the_original_never_regresses_on_time(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 3.0, ORIGINAL)
    assert compare(base, head).verdict(ORIGINAL) == "PASS"


def test_a_change_within_the_threshold_passes(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 1.06)
    assert compare(base, head, "--time-threshold", "10").verdict(FLASH) == "PASS"


def test_a_wide_interval_is_ambiguous(compare: Compare) -> None:
    base, head = make_run(seed=1, rounds=8), make_run(seed=2, rounds=8)
    data = bench_of(head, FLASH)["stats"]["data"]
    data[:] = [seconds * (0.85 if index % 2 else 1.18) for index, seconds in enumerate(data)]
    outcome = compare(base, head)
    assert outcome.code == 0
    assert outcome.verdict(FLASH) == "AMBIGUOUS"
    assert "does not exclude a regression" in outcome.why(FLASH)
    assert compare(base, head, "--strict").code == 1


def test_two_pairs_are_too_few_for_a_verdict(compare: Compare) -> None:
    base, head = make_run(seed=1, rounds=2), make_run(seed=2, rounds=2)
    slow_down(head, 1.5)
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == "AMBIGUOUS"
    assert "too few" in outcome.why(FLASH)


def test_a_few_pairs_that_all_agree_are_enough(compare: Compare) -> None:
    base, head = make_run(seed=1, rounds=5), make_run(seed=2, rounds=5)
    slow_down(head, 1.3)
    assert compare(base, head).verdict(FLASH) == "REGRESSED"


@pytest.mark.parametrize("factor", [1.0, 1.3, 0.7])
@pytest.mark.parametrize("side", ["base", "head"])
def test_under_foreign_load_time_is_ambiguous(side: str, factor: float, compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, factor)
    info_of(base if side == "base" else head)["device_state"]["foreign_cpu_cores"] = 0.9
    outcome = compare(base, head)
    assert outcome.code == 0
    assert outcome.verdict(FLASH) == "AMBIGUOUS"
    assert f"foreign load, 0.90 cores, in {side.upper()}" in outcome.why(FLASH)


def test_company_on_the_gpu_makes_time_ambiguous(compare: Compare, base: Run, head: Run) -> None:
    info_of(head)["device_state"]["gpu_foreign_processes"] = 2
    slow_down(head, 1.3)
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == "AMBIGUOUS"
    assert "2 other processes on the GPU" in outcome.why(FLASH)


@pytest.mark.parametrize("factor", [1.25, 0.75])
def test_a_control_that_moved_makes_time_ambiguous(factor: float, compare: Compare, base: Run, head: Run) -> None:
    control = info_of(head)["control"]
    control["rounds_seconds"] = [seconds * factor for seconds in control["rounds_seconds"]]
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == "AMBIGUOUS"
    assert "the control itself moved" in outcome.why(FLASH)


def test_memory_regresses_under_foreign_load_too(compare: Compare, base: Run, head: Run) -> None:
    info_of(head)["device_state"]["foreign_cpu_cores"] = 0.9
    info_of(head)["peak_memory_allocated_bytes"] *= 2
    assert compare(base, head).verdict(FLASH) == "REGRESSED"


def test_load_means_the_same_in_the_suite_and_in_the_gate() -> None:
    assert FOREIGN_LOAD_CORES == LOAD_IN_THE_SUITES_TABLE


def test_a_flash_case_that_lost_its_control_is_missing_it(compare: Compare, base: Run, head: Run) -> None:
    info_of(head)["control"] = None
    outcome = compare(base, head)
    assert outcome.code == 1
    assert outcome.verdict(FLASH) == "MISSING"
    assert compare(head, base).verdict(FLASH) == "AMBIGUOUS"
    info_of(base)["control"] = None
    assert compare(base, head).verdict(FLASH) == "AMBIGUOUS"


def test_unlike_controls_are_not_compared(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 2.0)
    info_of(head)["control"]["implementation"] = "eager"
    assert compare(base, head).verdict(FLASH) == "AMBIGUOUS"


# The machine's noise


def calibrate(run: Run, noise: float, definition: str = "def-tiny.en-4-single") -> Path:
    """Store a calibration of the run's machine."""
    document = {
        "calibration_version": 1,
        "fingerprint": fingerprint_of(run["machine_info"]),
        "datetime": "2026-11-24T10:42:02+00:00",
        "commit": "c" * 40,
        "cases": {FLASH: {"case_definition": definition, "runs": 12, "noise": noise, "smallest_visible_change": 0.1}},
    }
    return save(document, calibration_path(run["machine_info"]))


def test_a_noisy_machine_needs_a_larger_change(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 1.06)
    assert "no calibration of this machine: its noise is taken for 3.0 %" in compare(base, head).out
    calibrate(base, 0.08)
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == "PASS"
    assert "no calibration" not in outcome.out


def test_a_quiet_machine_sees_a_smaller_change(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 1.025)
    assert compare(base, head, "--time-threshold", "1").verdict(FLASH) != "REGRESSED"
    calibrate(base, 0.005)
    assert compare(base, head, "--time-threshold", "1").verdict(FLASH) == "REGRESSED"


def test_noise_of_another_definition_is_not_this_cases(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 1.06)
    calibrate(base, 0.08, definition="another")
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == "REGRESSED"
    assert "1 case not in this machine's calibration" in outcome.out


@pytest.mark.parametrize("noise", [math.nan, -0.1, True, "0.02", None])
def test_a_broken_calibration_is_refused(noise: Any, compare: Compare, base: Run, head: Run) -> None:
    path = calibrate(base, noise)
    outcome = compare(base, head)
    assert outcome.code == 2
    assert str(path) in outcome.err


def test_another_machines_calibration_is_refused(compare: Compare, base: Run, head: Run) -> None:
    path = calibrate(base, 0.02)
    path.write_text(path.read_text().replace("A CPU", "B CPU"))
    assert "another machine's" in compare(base, head).err


# Memory and counters


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
