"""Verdicts on time, and the machine's noise."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perf_tests.device_state import FOREIGN_LOAD_CORES as LOAD_IN_THE_SUITES_TABLE
from perf_tests.regression.calibration import calibration_path
from perf_tests.regression.fingerprint import fingerprint_of
from perf_tests.regression.thresholds import FOREIGN_LOAD_CORES

from .conftest import Outcome
from .make_runs import (
    FLASH,
    ORIGINAL,
    add_yardstick,
    bench_of,
    info_of,
    make_gpu_samples,
    make_run,
    make_session,
    save,
    slow_down,
)

Compare = Callable[..., Outcome]
Run = dict[str, Any]


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
    info_of(head)["device_state"]["gpu"] = make_gpu_samples(foreign_processes=[0, None, 2])
    slow_down(head, 1.3)
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == "AMBIGUOUS"
    assert "2 other processes on the GPU" in outcome.why(FLASH)


@pytest.mark.parametrize(("reasons", "verdict"), [(0x40, "AMBIGUOUS"), (0x05, "REGRESSED")])
def test_throttled_clocks_make_time_ambiguous(
    reasons: int, verdict: str, compare: Compare, base: Run, head: Run
) -> None:
    # One sample of three: hot, or idle and capped, as a busy GPU may be.
    info_of(head)["device_state"]["gpu"] = make_gpu_samples(throttle_reasons=[reasons, 0x4, None])
    slow_down(head, 1.3)
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == verdict
    assert ("the GPU's clocks throttled in HEAD" in outcome.why(FLASH)) == (verdict == "AMBIGUOUS")


def test_a_run_of_several_sessions_is_named(compare: Compare, base: Run, head: Run) -> None:
    head["perf_sessions"].append(make_session())
    assert "HEAD was measured in parts: its cases are of 2 sessions" in compare(base, head).out
    head["perf_sessions"].pop()
    assert "in parts" not in compare(base, head).out


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


def test_slower_memory_is_not_held_against_flash(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 1.06)
    add_yardstick(base)
    assert compare(base, head).verdict(FLASH) == "REGRESSED"
    add_yardstick(head, as_slow_as=1.06)
    assert compare(base, head).verdict(FLASH) == "PASS"


def test_with_the_yardstick_a_slower_flash_regressed(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 1.06)
    for run in (base, head):
        add_yardstick(run)
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == "REGRESSED"
    assert "by the measure of control and yardstick" in outcome.why(FLASH)


def test_unlike_yardsticks_are_not_compared(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 1.06)
    add_yardstick(base)
    add_yardstick(head, as_slow_as=1.06, version=2)
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == "REGRESSED"
    assert "by the control's measure" in outcome.why(FLASH)


def test_a_run_of_before_the_yardstick_is_read(compare: Compare, base: Run, head: Run) -> None:
    del info_of(base)["yardstick"]
    add_yardstick(head, as_slow_as=2.0)
    assert compare(base, head).verdict(FLASH) == "PASS"


# The machine's noise


def calibrate(run: Run, noise: float, definition: str = "def-tiny.en-4-single", **more: object) -> Path:
    """Store a calibration of the run's machine."""
    entry = {"case_definition": definition, "runs": 12, "noise": noise, "smallest_visible_change": 0.1}
    document = {
        "calibration_version": 1,
        "fingerprint": fingerprint_of(run["machine_info"]),
        "datetime": "2026-11-24T10:42:02+00:00",
        "commit": "c" * 40,
        "cases": {FLASH: entry | more},
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


def test_noise_by_the_yardstick_is_none_of_the_control_alone(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 1.025)
    calibrate(base, 0.005, yardstick=True)
    alone = compare(base, head, "--time-threshold", "1")
    assert alone.verdict(FLASH) != "REGRESSED"
    time = next(metric for metric in alone.case(FLASH)["metrics"] if metric["metric"] == "time")
    assert time["allowed"] == 0.03
    for run in (base, head):
        add_yardstick(run)
    assert compare(base, head, "--time-threshold", "1").verdict(FLASH) == "REGRESSED"


def test_noise_by_the_control_alone_holds_with_the_yardstick_too(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 1.06)
    for run in (base, head):
        add_yardstick(run)
    calibrate(base, 0.08)
    assert compare(base, head).verdict(FLASH) == "PASS"


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
