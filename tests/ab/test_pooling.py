"""The machine's state in the rounds of several processes."""

import copy
from typing import Any

import pytest

from perf_tests.ab.pooling import pool_benches
from perf_tests.runs.schema import EXTRA_INFO
from perf_tests.runs.validation import validate
from tests.make_runs import FLASH, bench_of, make_gpu_samples, make_run

(STATE,) = [field for field in EXTRA_INFO if field.name == "device_state"]


@pytest.fixture
def bench() -> dict[str, Any]:
    """A case of two rounds; the last sample comes after them."""
    bench = bench_of(make_run(rounds=2), FLASH)
    bench["extra_info"]["device_state"] |= {
        "load_average": None,
        "cpu_frequency_hz": 3e9,
        "rounds": {"begin_seconds": [0.1, 0.5], "end_seconds": [0.4, 0.9], "foreign_cpu_cores": [0.0, 0.1]},
        "gpu": make_gpu_samples() | {"at_seconds": [0.0, 0.5, 1.0]},
    }
    return bench


def test_the_processes_are_on_one_clock(bench: dict[str, Any]) -> None:
    other = copy.deepcopy(bench)
    other["extra_info"]["device_state"] |= {"load_average": 3.0, "foreign_cpu_cores": 0.5, "cpu_frequency_hz": 2e9}
    other["extra_info"]["device_state"]["rounds"]["foreign_cpu_cores"] = [0.4, 0.6]
    state = pool_benches([bench, other, bench])["extra_info"]["device_state"]
    assert not [*validate(state, STATE.fields, "pooled")]
    assert state["rounds"]["begin_seconds"] == pytest.approx([0.1, 0.5, 1.1, 1.5, 2.1, 2.5])
    assert state["rounds"]["end_seconds"] == pytest.approx([0.4, 0.9, 1.4, 1.9, 2.4, 2.9])
    assert state["rounds"]["foreign_cpu_cores"] == [0.0, 0.1, 0.4, 0.6, 0.0, 0.1]
    assert state["gpu"]["at_seconds"] == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.5, 2.0, 2.0, 2.5, 3.0])
    assert state["gpu"]["sm_clock_hz"] == [1_980_000_000] * 9
    assert state["gpu"]["sampler_cpu_seconds"] == pytest.approx(0.003)
    assert (state["load_average"], state["foreign_cpu_cores"], state["cpu_frequency_hz"]) == (3.0, 0.5, 2e9)
    assert bench["extra_info"]["device_state"]["gpu"]["at_seconds"] == [0.0, 0.5, 1.0]


def test_a_cpus_processes_have_no_samples(bench: dict[str, Any]) -> None:
    bench["extra_info"]["device_state"]["gpu"] = None
    state = pool_benches([bench, bench])["extra_info"]["device_state"]
    assert state["gpu"] is None
    assert state["rounds"]["begin_seconds"] == pytest.approx([0.1, 0.5, 1.0, 1.4])
