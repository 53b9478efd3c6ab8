"""Checking a run's JSON against the registry of recorded keys (``schema.py``): what is wrong comes back as text."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .schema import (
    COUNTED_CASE,
    EXTRA_INFO,
    MACHINE_INFO,
    OUTCOMES,
    PARAMS,
    PERF_CASES,
    PERF_SESSIONS,
    SCHEMA_VERSION,
    TIMED_ONLY,
    Field,
)


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


def validate(value: object, fields: tuple[Field, ...], where: str, *, only: bool = True) -> Iterator[str]:
    """Check that ``value`` is an object with every key of ``fields``, and no other if ``only``."""
    if not isinstance(value, Mapping):
        yield f"{where}: missing, or not an object"
        return
    for field in fields:
        if field.name not in value:
            yield f"{where}.{field.name}: missing"
        else:
            yield from _validate_value(value[field.name], field, f"{where}.{field.name}")
    if only:
        for unknown in sorted(set(value) - {field.name for field in fields}):
            yield f"{where}.{unknown}: not declared in perf_tests/schema.py"


def _validate_value(value: object, field: Field, where: str) -> Iterator[str]:
    if value is None:
        if not field.nullable:
            yield f"{where}: null"
    elif field.kind == "object":
        yield from validate(value, field.fields, where)
    elif not _is(field.kind, value):
        yield f"{where}: {value!r} is not of kind {field.kind}"


def _is(kind: str, value: object) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case "numbers":
            return isinstance(value, list) and all(_is("number", item) for item in value)
        case "numbers or nulls":
            return isinstance(value, list) and all(item is None or _is("number", item) for item in value)
        case "strings":
            return isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values())
        case "counts":
            return isinstance(value, Mapping) and all(_is("integer", item) for item in value.values())
        case "numbers by name":
            return isinstance(value, Mapping) and all(_is("number", item) for item in value.values())
    raise ValueError(f"no such kind: {kind}")
