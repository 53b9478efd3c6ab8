import copy
import math
from typing import Any

import pytest

from perf_tests.runs import schema
from perf_tests.runs.schema import Field
from perf_tests.runs.validation import validate
from tests.whole_runs import validate_run

SAMPLES = {
    "string": "text",
    "integer": 3,
    "number": 0.5,
    "boolean": True,
    "numbers": [0.5, 0.25],
    "numbers or nulls": [0.5, None],
    "strings": {"encoder": "sdpa"},
    "counts": {"aten.addmm": 3},
    "numbers by name": {"aten::addmm": 0.5},
}


def sample(fields: tuple[Field, ...]) -> dict[str, Any]:
    """An object that has every key of `fields`."""
    return {f.name: sample(f.fields) if f.kind == "object" else copy.copy(SAMPLES[f.kind]) for f in fields}


@pytest.fixture
def run() -> dict[str, Any]:
    """A run of one case, as the schema wants it."""
    name = "test_generate[tiny.en-4-single-flash]"
    info = sample(schema.EXTRA_INFO) | {"schema_version": schema.SCHEMA_VERSION}
    bench = {"name": name, "params": sample(schema.PARAMS), "extra_info": info, "stats": {"data": [1.0, 2.0]}}
    return {
        "machine_info": sample(schema.MACHINE_INFO) | {"node": "pytest-benchmark's own"},
        "perf_cases": [{"id": name, "outcome": "passed", "reason": None, "session": 0}],
        "perf_sessions": [sample(schema.PERF_SESSIONS)],
        "benchmarks": [bench],
    }


@pytest.fixture
def counted(run: dict[str, Any]) -> dict[str, Any]:
    """The same run, counted without timing."""
    count(run)
    run["benchmarks"].clear()
    return run


def count(run: dict[str, Any]) -> None:
    """Put what was counted into the entry of `perf_cases`."""
    bench = copy.deepcopy(run["benchmarks"][0])
    info = bench["extra_info"] | dict.fromkeys(schema.TIMED_ONLY)
    run["perf_cases"][0] |= {"params": bench["params"], "extra_info": info}


def test_a_counted_run_has_null_for_what_timing_gives(counted: dict[str, Any]) -> None:
    assert validate_run(counted) == []
    counted["perf_cases"][0]["extra_info"]["peak_memory_allocated_bytes"] = None
    assert validate_run(counted) == []
    counted["perf_cases"][0]["extra_info"]["tokens_per_second"] = 2.5
    (problem,) = validate_run(counted)
    assert problem.endswith("tokens_per_second: recorded, but nothing is timed")


def test_a_case_is_timed_or_counted(run: dict[str, Any]) -> None:
    count(run)
    (problem,) = validate_run(run)
    assert problem.endswith("measured twice")


@pytest.mark.parametrize("session", [1, -1])
def test_a_case_is_of_a_session_that_there_was(session: int, run: dict[str, Any]) -> None:
    run["perf_cases"][0]["session"] = session
    assert validate_run(run) == [f"perf_cases[0].session: {session}, and perf_sessions has 1"]
    run["perf_cases"][0]["session"] = None
    assert validate_run(run) == []


def all_fields(fields: tuple[Field, ...]) -> list[Field]:
    return [found for field in fields for found in (field, *all_fields(field.fields))]


def test_a_whole_run_has_no_problem(run: dict[str, Any]) -> None:
    assert validate_run(run) == []


def test_a_key_that_is_missing_null_or_undeclared_is_a_problem(run: dict[str, Any]) -> None:
    info = run["benchmarks"][0]["extra_info"]
    info |= {"mood": "good", "dtype": None, "control": None}  # the control is nullable
    del info["parity"], run["machine_info"]["torch"]
    problems = "; ".join(validate_run(run))
    for key, problem in {"dtype": "null", "mood": "not declared", "parity": "missing", "torch": "missing"}.items():
        assert f".{key}: {problem}" in problems
    assert "control" not in problems


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "1", None])
def test_a_number_is_finite_and_no_boolean(value: object) -> None:
    field = Field("peak", "number", "B", "")
    assert list(validate({"peak": value}, (field,), "here"))


def test_an_integer_is_no_boolean_and_no_fraction() -> None:
    field = Field("count", "integer", None, "")
    assert not list(validate({"count": 3}, (field,), "here"))
    assert list(validate({"count": True}, (field,), "here"))
    assert list(validate({"count": 3.5}, (field,), "here"))


def test_rounds_must_pair(run: dict[str, Any]) -> None:
    run["benchmarks"][0]["extra_info"]["control"]["rounds_seconds"] = [1.0]
    run["benchmarks"][0]["extra_info"]["yardstick"]["rounds_seconds"]["decoding"] = [1.0, 2.0, 3.0]
    control, decoding = validate_run(run)
    assert control.endswith("control has 1 rounds for 2")
    assert decoding.endswith("yardstick.decoding has 3 rounds for 2")


def test_the_rounds_state_must_pair(run: dict[str, Any]) -> None:
    state = run["benchmarks"][0]["extra_info"]["device_state"]
    state["rounds"]["begin_seconds"] = [1.0]
    state["gpu"]["sm_clock_hz"] = [None]
    begin, clock = validate_run(run)
    assert begin.endswith("device_state.rounds.begin_seconds has 1 rounds for 2")
    assert clock.endswith("device_state.gpu.sm_clock_hz has 1 samples for 2")
    state |= {"rounds": state["rounds"] | {"begin_seconds": [1.0, 2.0]}, "gpu": None}
    assert validate_run(run) == []


def test_a_list_may_have_nulls_where_it_is_declared() -> None:
    field = Field("clocks", "numbers or nulls", "Hz", "")
    assert not list(validate({"clocks": [None, 1.5]}, (field,), "here"))
    assert list(validate({"clocks": [None, "1"]}, (field,), "here"))
    assert list(validate({"clocks": None}, (field,), "here"))


def test_raw_rounds_must_be_there(run: dict[str, Any]) -> None:
    del run["benchmarks"][0]["stats"]["data"]
    assert "no raw rounds" in validate_run(run)[0]


def test_measured_and_passed_must_agree(run: dict[str, Any]) -> None:
    run["perf_cases"][0] |= {"outcome": "failed", "reason": "parity"}
    assert "not passed" in validate_run(run)[0]
    run["perf_cases"][0] |= {"outcome": "passed"}
    run["benchmarks"].clear()
    assert "not measured" in validate_run(run)[0]


def test_a_foreign_run_is_no_run_of_the_suite() -> None:
    assert validate_run({"benchmarks": []})
    assert validate_run({"machine_info": None, "perf_cases": "none"})


def test_units_are_in_the_names() -> None:
    fields = all_fields((*schema.EXTRA_INFO, *schema.MACHINE_INFO))
    suffixes = {"B": "_bytes", "s": "_seconds", "Hz": "_hz", "°C": "_celsius"}
    for field in fields:
        assert field.meaning, f"{field.name} has no meaning"
        if field.unit in suffixes:
            assert field.name.endswith(suffixes[field.unit])


def test_no_key_is_declared_twice() -> None:
    for table in (schema.EXTRA_INFO, schema.MACHINE_INFO, schema.COUNTED_CASE, schema.PERF_SESSIONS, schema.PARAMS):
        names = [field.name for field in table]
        assert len(names) == len(set(names))
