"""Verdicts on time, and the machine's noise."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from perf_tests.gate.calibration import calibration_path
from perf_tests.runs.fingerprint import fingerprint_of
from tests.make_runs import FLASH, ORIGINAL, add_yardstick, bench_of, info_of, make_run, make_session, save, slow_down

from .conftest import Outcome

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
    assert "uncorrected times of original moved by +1" in outcome.out


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


def test_a_run_of_several_sessions_is_named(compare: Compare, base: Run, head: Run) -> None:
    head["perf_sessions"].append(make_session())
    assert "HEAD was measured in parts: its cases are of 2 sessions" in compare(base, head).out
    head["perf_sessions"].pop()
    assert "in parts" not in compare(base, head).out


def test_a_flash_case_that_lost_its_control_is_missing_it(compare: Compare, base: Run, head: Run) -> None:
    info_of(head)["control"] = None
    outcome = compare(base, head)
    assert outcome.code == 1
    assert outcome.verdict(FLASH) == "MISSING"
    assert compare(head, base).verdict(FLASH) == "AMBIGUOUS"


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


def calibrate(
    run: Run,
    noise: float,
    definition: str = "def-tiny.en-4-single",
    made: object = "2026-11-24T10:42:02+00:00",
    **more: object,
) -> Path:
    """Store a calibration of the run's machine."""
    entry = {"case_definition": definition, "runs": 12, "noise": noise, "smallest_visible_change": 0.1}
    document = {
        "calibration_version": 1,
        "fingerprint": fingerprint_of(run["machine_info"]),
        "datetime": made,
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


@pytest.mark.parametrize(
    ("days", "age"),
    [
        (-3, "made today (commit cccccccccc)"),
        (0, "made today (commit cccccccccc)"),
        (1, "made 1 day ago (commit cccccccccc)"),
        (90, "made 90 days ago (commit cccccccccc)"),
        (91, "made 91 days ago (commit cccccccccc); calibrating again is due (python -m perf_tests calibrate)"),
    ],
)
def test_what_a_calibration_is_of_is_said_where_it_decided(
    days: int, age: str, compare: Compare, base: Run, head: Run
) -> None:
    made = datetime.now(UTC) - timedelta(days=days, minutes=5)
    calibrate(base, 0.02, made=made.isoformat())
    outcome = compare(base, head)
    assert outcome.report is not None
    (note,) = (note for note in outcome.report["notes"] if "calibration" in note)
    assert note == f"noise from the calibration of A CPU, 2 threads, torch 2.13.0+cpu, {age}"
    compared = compare(base, head, "--only", "counters").report
    assert compared is not None
    assert not [note for note in compared["notes"] if "calibration" in note]


def test_the_oldest_noise_that_decided_is_told(compare: Compare, base: Run, head: Run) -> None:
    old = (datetime.now(UTC) - timedelta(days=12, minutes=5)).isoformat()
    calibrate(base, 0.02, made=datetime.now(UTC).isoformat(), datetime=old, commit="d" * 40)
    assert "made 12 days ago (commit dddddddddd)" in compare(base, head).out


def test_each_machines_calibration_that_decided_is_told(compare: Compare, base: Run, head: Run) -> None:
    head["machine_info"]["torch"] = "3.0"
    calibrate(base, 0.02)
    calibrate(head, 0.04)
    assert "calibration of A CPU, 2 threads, torch 3.0, made" in compare(base, head, "--allow", "torch").out
    assert "torch 2.13.0+cpu, made" not in compare(base, head, "--allow", "torch").out  # the larger one counts


@pytest.mark.parametrize("made", ["last week", "", None, 7, "2026-11-24T10:42:02", "2026-13-24T10:42:02+00:00"])
@pytest.mark.parametrize("of_the_case", [False, True])
def test_a_calibration_of_no_time_is_refused(
    made: object, of_the_case: bool, compare: Compare, base: Run, head: Run
) -> None:
    path = calibrate(base, 0.02, datetime=made) if of_the_case else calibrate(base, 0.02, made=made)
    outcome = compare(base, head)
    assert outcome.code == 2
    assert f"{path}: no calibration: datetime: " in outcome.err
    assert outcome.err.endswith("; calibrate again, or remove it\n")


def test_another_machines_calibration_is_refused(compare: Compare, base: Run, head: Run) -> None:
    path = calibrate(base, 0.02)
    path.write_text(path.read_text().replace("A CPU", "B CPU"))
    assert "another machine's" in compare(base, head).err
