"""Runs of `--perf-counters-only`: exact figures without any time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perf_tests.runs import merge
from tests.make_runs import FLASH, MACHINE, ORIGINAL, info_of, make_counted, make_run, remove, save, set_timer

from .conftest import Outcome

Compare = Callable[..., Outcome]
Run = dict[str, Any]


@pytest.fixture
def counted_base(base: Run) -> Run:
    return make_counted(base)


@pytest.fixture
def counted_head(head: Run) -> Run:
    return make_counted(head)


def test_unchanged_code_passes_and_the_reader_is_told_that_nothing_was_timed(
    compare: Compare, counted_base: Run, counted_head: Run
) -> None:
    outcome = compare(counted_base, counted_head, "--strict")
    assert outcome.code == 0
    assert [outcome.verdict(name) for name in (ORIGINAL, FLASH)] == ["PASS", "PASS"]
    assert "2 cases: counted without timing by both runs" in outcome.out
    assert "calibration" not in outcome.out


@pytest.mark.parametrize("metric", ["aten_op_count", "flop_count"])
def test_one_more_is_a_regression(metric: str, compare: Compare, counted_base: Run, counted_head: Run) -> None:
    info_of(counted_head)[metric] += 1
    outcome = compare(counted_base, counted_head)
    assert (outcome.code, outcome.verdict(FLASH), outcome.verdict(ORIGINAL)) == (1, "REGRESSED", "PASS")
    assert metric in outcome.why(FLASH)


def test_memory_is_judged_where_it_was_measured(compare: Compare, counted_base: Run, counted_head: Run) -> None:
    metric = "peak_memory_allocated_bytes"
    info_of(counted_head)[metric] = round(info_of(counted_base)[metric] * 1.015)
    assert compare(counted_base, counted_head).verdict(FLASH) == "REGRESSED"
    info_of(counted_head)[metric] = None
    outcome = compare(counted_base, counted_head)
    assert (outcome.code, outcome.verdict(FLASH)) == (1, "MISSING")
    info_of(counted_base)[metric] = None
    assert compare(counted_base, counted_head).code == 0


def test_counters_that_neither_run_has_are_no_pass(compare: Compare, counted_base: Run, counted_head: Run) -> None:
    for run in (counted_base, counted_head):
        info_of(run)["aten_op_count"] = None
    assert compare(counted_base, counted_head).verdict(FLASH) == "AMBIGUOUS"


def test_a_case_that_is_gone_is_missing(compare: Compare, counted_base: Run, counted_head: Run) -> None:
    remove(counted_head, FLASH)
    outcome = compare(counted_base, counted_head)
    assert (outcome.code, outcome.verdict(FLASH)) == (1, "MISSING")


def test_time_that_only_base_measured_is_missing_unless_it_is_left_out(
    compare: Compare, base: Run, counted_head: Run
) -> None:
    outcome = compare(base, counted_head)
    assert (outcome.code, outcome.verdict(FLASH)) == (1, "MISSING")
    assert "time: measured by BASE, not by HEAD (--perf-counters-only)" in outcome.why(FLASH)
    assert compare(base, counted_head, "--only", "time").verdict(FLASH) == "MISSING"
    assert compare(base, counted_head, "--only", "counters", "--only", "memory").code == 0
    info_of(counted_head)["flop_count"] += 1
    assert compare(base, counted_head, "--only", "counters").verdict(FLASH) == "REGRESSED"


def test_time_that_only_head_measured_is_not_judged_and_said(compare: Compare, counted_base: Run, head: Run) -> None:
    outcome = compare(counted_base, head)
    assert (outcome.code, outcome.verdict(FLASH)) == (0, "PASS")
    assert outcome.why(FLASH) == "time: not measured by BASE (--perf-counters-only)"


def test_what_was_not_timed_is_of_no_clock(compare: Compare, counted_base: Run, head: Run) -> None:
    set_timer(head, "process_time")
    outcome = compare(counted_base, head)
    assert outcome.code == 0
    assert "calibration" not in outcome.out  # there is no time to judge


def test_the_cpus_name_does_not_matter_where_nothing_is_timed(
    compare: Compare, counted_base: Run, counted_head: Run
) -> None:
    counted_head["machine_info"]["cpu"] = {"brand_raw": "Another CPU"}
    outcome = compare(counted_base, counted_head)
    assert outcome.code == 0
    assert "compared although the machines differ: cpu.brand_raw (A CPU / Another CPU)" in outcome.out


@pytest.mark.parametrize("key", ["torch", "transformers", "thread_count"])
def test_what_exact_figures_depend_on_is_refused(
    key: str, compare: Compare, counted_base: Run, counted_head: Run
) -> None:
    counted_head["machine_info"][key] = 16 if key == "thread_count" else "9.9"
    outcome = compare(counted_base, counted_head)
    assert outcome.code == 2
    assert f"{key} ({MACHINE[key]} / " in outcome.err
    assert compare(counted_base, counted_head, "--allow", key).code == 0


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda run: run["perf_cases"].append(7), "perf_cases[2]: missing, or not an object"),
        (lambda run: run["perf_cases"][0].update(extra_info={}), "perf_cases[0].extra_info: not a record of the suite"),
        (lambda run: run["perf_cases"][0].update(id=7), "perf_cases[0].id: 7 is not of kind string"),
        (lambda run: run["perf_cases"].append(run["perf_cases"][0]), "twice in perf_cases"),
        (lambda run: run["benchmarks"].append({"name": ORIGINAL}), "measured twice in one run"),
        (lambda run: info_of(run).update(schema_version=1), "schema_version 1, and only 2 is read here"),
        (lambda run: info_of(run).update(flop_count=-1), "flop_count: -1 is no count"),
    ],
)
def test_damage_is_named(
    damage: Callable[[Run], object], complaint: str, compare: Compare, counted_base: Run, counted_head: Run
) -> None:
    damage(counted_head)
    outcome = compare(counted_base, counted_head)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_shards_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str], compare: Compare) -> None:
    whole = make_counted(make_run(seed=1))
    shards = []
    for index in range(2):
        shard = make_counted(make_run(seed=1))
        shard["perf_cases"] = shard["perf_cases"][index : index + 1]
        shards.append(save(shard, tmp_path / f"shard{index}.json"))
    out = tmp_path / "whole.json"
    assert merge.main([str(out), *map(str, shards)]) == 0, capsys.readouterr().err
    whole["datetime"] = "2026-11-25T00:00:00+00:00"
    assert compare(whole, json.loads(out.read_text()), "--same").code == 0
