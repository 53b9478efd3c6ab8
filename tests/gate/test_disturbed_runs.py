"""The rule for disturbed machines, held to real runs: 192 that `tests/disturbances.py` measured and condensed."""

import json
import random
from pathlib import Path

import pytest

from perf_tests.gate.disturbance import DISTURBED_NOISE, calm_rounds
from perf_tests.runs.device_state import Cores
from perf_tests.runs.records import Record
from tests.disturbances import COLUMNS, DELAYS, MEASURED_ON, RUNS, changes_of_unchanged, make_record, rate, read_runs

PATH = Path(__file__).with_name("disturbed_runs.json")
BUSY = [name for name in COLUMNS if name != "calm"]
Runs = dict[tuple[str, float], list[Record]]


@pytest.fixture(scope="module")
def runs() -> Runs:
    read = read_runs(PATH)
    assert {*read} == {(column, delay) for column in COLUMNS for delay in DELAYS}
    assert {len(records) for records in read.values()} == {RUNS}
    return read


@pytest.mark.parametrize("alike", [False, True], ids=["BASE calm", "BASE alike"])
def test_unchanged_code_is_not_called_slower(alike: bool, runs: Runs) -> None:
    rates = [rate(runs[column if alike else "calm", 0.0], runs[column, 0.0]) for column in COLUMNS]
    assert sum(each.found for each in rates) <= 1
    assert sum(each.of for each in rates) == 48


@pytest.mark.parametrize("alike", [False, True], ids=["BASE calm", "BASE alike"])
@pytest.mark.parametrize("column", COLUMNS)
def test_what_is_much_slower_is_found_whatever_else_runs(column: str, alike: bool, runs: Runs) -> None:
    base = runs[column if alike else "calm", 0.0]
    assert rate(base, runs[column, 1.0]).found == RUNS
    assert rate(base, runs[column, 0.3]).found >= 0.9 * RUNS


def test_a_little_slower_is_found_on_a_calm_machine(runs: Runs) -> None:
    assert rate(runs["calm", 0.0], runs["calm", 0.08]).found >= 0.8 * RUNS


@pytest.mark.parametrize(("cores", "load"), [(Cores(needed=2, spare=14), 14.0), (Cores(needed=16, spare=0), 1.5)])
def test_a_little_slower_is_found_on_a_host_with_16_cores(cores: Cores, load: float, runs: Runs) -> None:
    """The calm runs, beside the load that other processes make on such a host: synthetic, and free there."""
    rng = random.Random(0)
    condensed = json.loads(PATH.read_bytes())["runs"]["calm"]
    loaded = {
        delay: [
            run | {"foreign_cpu_cores": [load * rng.uniform(0.5, 1) for _ in run["seconds"]]}
            for run in condensed[delay]
        ]
        for delay in ("0.0", "0.08")
    }
    bases, heads = ([make_record(run, cores) for run in own] for own in loaded.values())
    assert rate(bases, heads) == rate(runs["calm", 0.0], runs["calm", 0.08])
    # On the machine of two cores it would have disturbed all of them.
    assert not any(calm_rounds(make_record(run, MEASURED_ON)) for run in loaded["0.08"])


def test_the_noise_is_what_was_measured(runs: Runs) -> None:
    """98 of 100 of the changes of unchanged code against a calm run are below it, and it is no wider than needed."""
    most = max(percentile([*changes_of_unchanged(runs, column)]) for column in BUSY)
    assert most <= DISTURBED_NOISE <= 1.3 * most


def percentile(changes: list[float]) -> float:
    return sorted(changes)[round(0.98 * len(changes)) - 1]
