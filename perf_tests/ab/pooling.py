"""The runs of several processes as one run: what ``compare`` reads, with the process as its unit.

Rounds are put together in the processes' order, and ``process_rounds`` says which are whose. Exact numbers repeat from
process to process; where one does not (CUDA's allocator, in places), the middle one counts. Of what can only spoil a
result, the worst counts: the largest parity error, the most foreign load. The times of ``device_state`` are of one
clock for all processes, on which the watch of each begins where that of the one before ended.
"""

import copy
from collections.abc import Mapping, Sequence
from statistics import median, median_low
from typing import Any

from perf_tests.common.intervals import estimate_pooled_speedup
from perf_tests.runs.records import COUNTERS, MEMORY
from perf_tests.runs.saved import Run
from perf_tests.runs.statistics import Yardstick, are_alike

Bench = dict[str, Any]
# What follows from each process's median round and, for a component, from the limits that it measured itself.
RATES = ("tokens_per_second", "real_time_factor", "floor_seconds", "fraction_of_limit")
# What is on the clock of a process's watch.
WATCH_TIMES = ("begin_seconds", "end_seconds", "at_seconds")


def pool_runs(runs: Sequence[Run], commit_info: Mapping[str, Any]) -> dict[str, Any]:
    """One run's document of at least one process's; ``commit_info`` says what was measured.

    A case that failed in one process has failed; one that a later process did not select was measured by the others.
    """
    outcomes: dict[str, Any] = {}
    benches: dict[str, list[Bench]] = {}
    for run in runs:
        for entry in run.document["perf_cases"]:
            if outcomes.get(entry["id"], {"outcome": "passed"})["outcome"] == "passed":
                outcomes[entry["id"]] = entry
        for bench in run.document["benchmarks"]:
            benches.setdefault(bench["name"], []).append(bench)
    document = copy.deepcopy(dict(runs[0].document))
    document["commit_info"] = dict(commit_info)
    document["perf_cases"] = [entry | {"session": None} for entry in outcomes.values()]
    document["benchmarks"] = [
        pool_benches(found) for name, found in benches.items() if outcomes[name]["outcome"] == "passed"
    ]
    return document


def pool_benches(benches: Sequence[Bench]) -> Bench:
    """One benchmark of the same case in several processes."""
    pooled = copy.deepcopy(benches[0])
    if len(benches) == 1:
        return pooled
    infos = [bench["extra_info"] for bench in benches]
    rounds = [bench["stats"]["data"] for bench in benches]
    seconds = [second for data in rounds for second in data]
    pooled["stats"] = pooled["stats"] | _summarize(seconds)
    info = pooled["extra_info"]
    info["process_rounds"] = [len(data) for data in rounds]
    for key in (*MEMORY, *COUNTERS):
        values = [value[key] for value in infos if value[key] is not None]
        info[key] = median_low(values) if len(values) == len(infos) else None
    info["parity"] = max((value["parity"] for value in infos), key=lambda parity: float(parity["max_abs_error"]))
    info["device_state"] = _pool_states([value["device_state"] for value in infos])
    for key in RATES:
        values = [value[key] for value in infos if value[key] is not None]
        info[key] = median(values) if len(values) == len(infos) else None
    if info["control"] is not None:
        controls = [value["control"] for value in infos]
        positions = {control["position"] for control in controls}
        info["control"] = controls[0] | {
            "rounds_seconds": [second for control in controls for second in control["rounds_seconds"]],
            "position": positions.pop() if len(positions) == 1 else "both",
        }
        pairs = [(control["rounds_seconds"], data) for control, data in zip(controls, rounds, strict=True)]
        info["speedup"] = estimate_pooled_speedup(pairs)._asdict()
    info["yardstick"] = _pool_yardsticks([value.get("yardstick") for value in infos])
    return pooled


def _pool_yardsticks(found: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """One for the rounds of all processes; none where a process has none, or another one."""
    present = [each for each in found if each is not None]
    works = [Yardstick(each["version"], each["rounds_seconds"]) for each in present]
    if len(present) < len(found) or not are_alike(works):
        return None
    parts = {name: [second for work in works for second in work.seconds[name]] for name in works[0].seconds}
    return {**present[0], "rounds_seconds": parts}


def _pool_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One for the rounds of all processes: of single figures the worst, of lists all, in the processes' order."""
    pooled: dict[str, Any] = {}
    for key, worst in (("load_average", max), ("foreign_cpu_cores", max), ("cpu_frequency_hz", min)):
        pooled[key] = worst((state[key] for state in states if state[key] is not None), default=None)
    rounds, gpus, end = [], [], 0.0
    for state in states:
        rounds.append(_delay(state["rounds"], end))
        gpus.append(_delay(state["gpu"] or {}, end))
        end = max([*rounds[-1]["end_seconds"], *gpus[-1].get("at_seconds", ())])
    return pooled | {"rounds": _join(rounds), "gpu": _join(gpus) if all(gpus) else None}


def _delay(record: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    return {**record, **{key: [time + seconds for time in record[key]] for key in WATCH_TIMES if key in record}}


def _join(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lists one after another; of a number the sum."""
    return {
        key: [value for record in records for value in record[key]]
        if isinstance(first, list)
        else sum(record[key] for record in records)
        for key, first in records[0].items()
    }


def _summarize(seconds: Sequence[float]) -> dict[str, Any]:
    """pytest-benchmark's own statistics of all rounds."""
    from pytest_benchmark.stats import Stats

    stats = Stats()  # type: ignore[no-untyped-call]
    for second in seconds:
        stats.update(second)  # type: ignore[no-untyped-call]
    fields: dict[str, Any] = stats.as_dict()  # type: ignore[no-untyped-call]
    return fields | {"data": [*seconds]}
