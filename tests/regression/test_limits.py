"""Verdicts on how near a component comes to the machine's limits: only against a bar that somebody set."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Outcome
from .make_runs import FLASH, ORIGINAL, bench_of, disturb, info_of, remove, set_outcome

Compare = Callable[..., Outcome]
Run = dict[str, Any]
BAR = "--least-fraction-of-limit"
METRIC = "fraction_of_limit"


def come_near(run: Run, fraction: float | None, name: str = FLASH) -> Run:
    info_of(run, name)[METRIC] = fraction
    return run


def bar_of(tmp_path: Path, *bars: tuple[str, float]) -> Path:
    path = tmp_path / "bars.toml"
    table = "[[tool.perf_tests.thresholds]]"
    path.write_text(
        "".join(f'{table}\ncase = "{case}"\nmetric = "{METRIC}"\nleast = {least}\n' for case, least in bars)
    )
    return path


def test_without_a_bar_any_fraction_passes(compare: Compare, base: Run, head: Run) -> None:
    outcome = compare(come_near(base, 0.9), come_near(head, 0.1))
    assert outcome.code == 0
    assert outcome.verdict(FLASH) == "PASS"
    (metric,) = (found for found in outcome.case(FLASH)["metrics"] if found["metric"] == METRIC)
    assert (metric["base"], metric["head"], metric["verdict"]) == (0.9, 0.1, "PASS")
    assert metric["least"] is None
    assert "0.90 → 0.10" in outcome.out
    outcome = compare(base, head, "--only", "limit")
    assert outcome.code == 2
    assert "nothing must be reached" in outcome.err
    assert "of limit" not in compare(come_near(base, None), come_near(head, None)).out


@pytest.mark.parametrize(("fraction", "verdict"), [(0.7, "PASS"), (0.52, "AMBIGUOUS"), (0.48, "AMBIGUOUS")])
def test_noise_is_allowed_for(fraction: float, verdict: str, compare: Compare, base: Run, head: Run) -> None:
    outcome = compare(come_near(base, 0.7), come_near(head, fraction), BAR, "0.5")
    assert outcome.code == 0
    assert outcome.verdict(FLASH) == verdict
    assert compare(base, head, BAR, "0.5", "--strict").code == (verdict == "AMBIGUOUS")


@pytest.mark.parametrize("before", [0.4, 0.9])
def test_what_does_not_reach_it_regressed_whatever_base_did(
    before: float, compare: Compare, base: Run, head: Run
) -> None:
    outcome = compare(come_near(base, before), come_near(head, 0.35), BAR, "0.5")
    assert outcome.code == 1
    assert outcome.verdict(FLASH) == "REGRESSED"
    assert f"{METRIC} 0.35 [" in outcome.why(FLASH)
    assert f"must reach 0.5; {before:g} in BASE" in outcome.why(FLASH)


def test_scattered_rounds_settle_nothing(compare: Compare, base: Run, head: Run) -> None:
    stats = bench_of(come_near(head, 0.4), FLASH)["stats"]
    stats["data"] = [seconds * (0.5 if index % 2 else 1.5) for index, seconds in enumerate(stats["data"])]
    assert compare(come_near(base, 0.4), head, BAR, "0.5", "--only", "limit").verdict(FLASH) == "AMBIGUOUS"


def test_a_disturbed_machine_can_only_pass(compare: Compare, base: Run, head: Run) -> None:
    """Nothing that others do makes it faster."""
    come_near(base, 0.9)
    for fraction, verdict in ((0.1, "AMBIGUOUS"), (0.9, "PASS")):
        outcome = compare(base, disturb(come_near(head, fraction)), BAR, "0.5", "--only", "limit")
        assert outcome.verdict(FLASH) == verdict
        assert ("others took up to 50 % of its cores" in outcome.why(FLASH)) is (verdict == "AMBIGUOUS")


def test_a_bar_is_for_flash_or_for_the_cases_that_it_names(compare: Compare, base: Run, head: Run) -> None:
    for run in (base, head):
        come_near(come_near(run, 0.7), 0.1, ORIGINAL)
    assert compare(base, head, BAR, "0.5").code == 0
    outcome = compare(base, head, BAR, "*-original=0.5")
    assert (outcome.verdict(ORIGINAL), outcome.verdict(FLASH)) == ("REGRESSED", "PASS")
    outcome = compare(base, head, BAR, "0.9", BAR, f"{FLASH}=0.5")
    assert outcome.verdict(FLASH) == "PASS"


def test_bars_of_a_config(compare: Compare, base: Run, head: Run, tmp_path: Path) -> None:
    come_near(base, 0.4), come_near(head, 0.4)
    path = bar_of(tmp_path, ("tiny.en-*-flash", 0.3), ("tiny.en-4-*-flash", 0.8))
    assert compare(base, head, "--config", path).verdict(FLASH) == "REGRESSED"
    assert compare(base, head, "--config", path, BAR, "0.3").verdict(FLASH) == "PASS"
    path = bar_of(tmp_path, ("base.en-*", 0.8))
    assert compare(base, head, "--config", path).verdict(FLASH) == "PASS"


def test_a_bar_without_anything_to_judge_is_refused(compare: Compare, base: Run, head: Run, tmp_path: Path) -> None:
    """Else a gate of mistyped cases would pass for ever; a config also holds for runs without components."""
    for arguments in ((BAR, "0.5"), (BAR, "test_encoder*=0.5")):
        outcome = compare(base, head, *arguments)
        assert outcome.code == 2
        assert "records a fraction_of_limit" in outcome.err
    assert compare(base, head, "--config", bar_of(tmp_path, ("*", 0.5))).code == 0
    set_outcome(head, FLASH, "failed", "out of memory")
    assert compare(base, head, BAR, "0.5").code == 1


def test_a_fraction_that_is_no_longer_recorded(compare: Compare, base: Run, head: Run) -> None:
    come_near(base, 0.7)
    assert compare(base, head).verdict(FLASH) == "PASS"
    assert compare(base, head, BAR, "0.5").verdict(FLASH) == "MISSING"
    assert compare(head, base, BAR, "0.5").verdict(FLASH) == "PASS"


def test_a_fraction_that_is_no_number_is_no_pass(compare: Compare, base: Run, head: Run) -> None:
    assert compare(come_near(base, 0.7), come_near(head, math.nan), BAR, "0.5").verdict(FLASH) == "AMBIGUOUS"


@pytest.mark.parametrize(("fraction", "verdict"), [(0.7, "NEW"), (0.35, "REGRESSED")])
def test_a_new_case_must_reach_it_too(fraction: float, verdict: str, compare: Compare, base: Run, head: Run) -> None:
    remove(base, FLASH)
    outcome = compare(base, come_near(head, fraction), BAR, "0.5")
    assert outcome.verdict(FLASH) == verdict
    assert "BASE did not select it" in outcome.why(FLASH)
    assert compare(base, head).verdict(FLASH) == "NEW"


def test_unlike_machines_have_each_its_own_limits(compare: Compare, base: Run, head: Run) -> None:
    come_near(base, 0.4)["machine_info"]["thread_count"] = 64
    come_near(head, 0.7)
    assert compare(base, head, BAR, "0.5").code == 2
    assert compare(base, head, BAR, "0.5", "--only", "limit").verdict(FLASH) == "PASS"


@pytest.mark.parametrize("typed", ["50", "0", "-1", "nan", "half", "", "=0.5", "tiny.en-*="])
def test_what_is_no_bar_is_refused(typed: str, compare: Compare, base: Run, head: Run) -> None:
    outcome = compare(base, head, BAR, typed)
    assert outcome.code == 2
    assert "fraction above 0 and up to 1" in outcome.err
