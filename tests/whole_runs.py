"""Whether a saved run has all that `perf_tests/runs/schema.py` declares, and nothing else."""

from collections.abc import Mapping
from typing import Any

from perf_tests.runs.schema import (
    COUNTED_CASE,
    EXTRA_INFO,
    MACHINE_INFO,
    OUTCOMES,
    PARAMS,
    PERF_CASES,
    PERF_SESSIONS,
    SCHEMA_VERSION,
    TIMED_ONLY,
)
from perf_tests.runs.validation import validate


def validate_run(run: Mapping[str, Any]) -> list[str]:
    """Check a run's JSON (as a mapping) against the registry; return the problems, none if it is whole."""
    problems = list(validate(run.get("machine_info"), MACHINE_INFO, "machine_info", only=False))
    entries = run.get("perf_cases")
    if not isinstance(entries, list):
        return [*problems, "perf_cases: missing, or not a list"]
    sessions = run.get("perf_sessions")
    if not isinstance(sessions, list):
        return [*problems, "perf_sessions: missing, or not a list"]
    for index, session in enumerate(sessions):
        problems += validate(session, PERF_SESSIONS, f"perf_sessions[{index}]")
    for index, entry in enumerate(entries):
        problems += validate_outcome(entry, f"perf_cases[{index}]", len(sessions))
    passed = {entry.get("id") for entry in entries if entry.get("outcome") == "passed"}
    names = [bench.get("name", "?") for bench in run.get("benchmarks", ())]
    names += [entry.get("id") for entry in entries if "extra_info" in entry]
    for bench in run.get("benchmarks", ()):
        problems += validate_case(bench)
    problems += [f"{name}: measured, but not passed in perf_cases" for name in names if name not in passed]
    measured = {*names}
    problems += [f"{name}: measured twice" for name in sorted(measured) if names.count(name) > 1]
    return problems + [f"{name}: passed in perf_cases, but not measured" for name in sorted(passed - measured)]


def validate_case(bench: Mapping[str, Any]) -> list[str]:
    """Check one entry of the run's ``benchmarks``; return the problems."""
    name = bench.get("name", "?")
    problems = list(validate(bench.get("params"), PARAMS, f"{name}: params"))
    problems += validate(bench.get("extra_info"), EXTRA_INFO, f"{name}: extra_info")
    info = bench.get("extra_info")
    if not isinstance(info, Mapping) or problems:
        return problems
    if info["schema_version"] != SCHEMA_VERSION:
        problems.append(f"{name}: schema_version {info['schema_version']}, expected {SCHEMA_VERSION}")
    data = bench.get("stats", {}).get("data")
    if not data:
        problems.append(f"{name}: stats.data: no raw rounds")
        return problems
    beside = {"control": info["control"]["rounds_seconds"]} if info["control"] is not None else {}
    if info["yardstick"] is not None:
        beside |= {f"yardstick.{part}": values for part, values in info["yardstick"]["rounds_seconds"].items()}
    state = info["device_state"]
    beside |= {f"device_state.rounds.{key}": values for key, values in state["rounds"].items()}
    problems += [
        f"{name}: {what} has {len(values)} rounds for {len(data)}"
        for what, values in beside.items()
        if len(values) != len(data)
    ]
    samples = {key: values for key, values in (state["gpu"] or {}).items() if isinstance(values, list)}
    problems += [
        f"{name}: device_state.gpu.{key} has {len(values)} samples for {len(samples['at_seconds'])}"
        for key, values in samples.items()
        if len(values) != len(samples["at_seconds"])
    ]
    return problems


def validate_outcome(entry: Mapping[str, Any], where: str, sessions: int) -> list[str]:
    """Check one entry of the run's ``perf_cases``, of so many ``sessions``; return the problems."""
    is_counted = "extra_info" in entry
    problems = list(validate(entry, COUNTED_CASE if is_counted else PERF_CASES, where))
    if problems:
        return problems
    if entry["outcome"] not in OUTCOMES:
        problems.append(f"{where}.outcome: {entry['outcome']!r} is not one of {OUTCOMES}")
    if entry["session"] is not None and not 0 <= entry["session"] < sessions:
        problems.append(f"{where}.session: {entry['session']}, and perf_sessions has {sessions}")
    if is_counted:
        name, info = entry["id"], entry["extra_info"]
        if info["schema_version"] != SCHEMA_VERSION:
            problems.append(f"{name}: schema_version {info['schema_version']}, expected {SCHEMA_VERSION}")
        problems += [f"{name}: {key}: recorded, but nothing is timed" for key in TIMED_ONLY if info[key] is not None]
    return problems
