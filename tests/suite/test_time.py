import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from perf_tests.measure.device import Nvml, StateWatch, query_nvml
from perf_tests.measure.time import time_rounds
from perf_tests.measure.yardstick import Reading


class FakeBenchmark:
    """Calls as `pedantic` does, timing nothing."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pedantic(
        self,
        target: Callable[[], None],
        *,
        setup: Callable[[], None],
        teardown: Callable[[], None],
        rounds: int,
        warmup_rounds: int,
    ) -> None:
        for _ in range(warmup_rounds + rounds):
            assert setup() is None
            assert target() is None
            assert teardown() is None


def test_every_round_follows_a_control_round() -> None:
    log: list[str] = []
    beside = time_rounds(FakeBenchmark(), lambda: log.append("run"), 3, control=lambda: log.append("control"))
    assert log == ["control", "run"] * 4
    assert len(beside.control_seconds) == 3
    assert beside.readings == []


@pytest.mark.parametrize("control_after", [False, True])
def test_the_yardstick_is_read_between_control_and_round(control_after: bool) -> None:
    log: list[str] = []
    readings = iter(Reading(float(number), 0.5) for number in range(100))

    def yardstick() -> Reading:
        log.append("yardstick")
        return next(readings)

    beside = time_rounds(
        FakeBenchmark(),
        lambda: log.append("run"),
        3,
        control=lambda: log.append("control"),
        control_after=control_after,
        yardstick=yardstick,
    )
    order = ["control", "yardstick", "run"]
    assert log == (order[::-1] if control_after else order) * 4
    # The first one is the warm-up's.
    assert beside.readings == [Reading(number, 0.5) for number in (1.0, 2.0, 3.0)]


def test_what_is_warm_needs_no_warm_up() -> None:
    log: list[str] = []
    run, control = (lambda: log.append("run")), (lambda: log.append("control"))
    seconds = time_rounds(FakeBenchmark(), run, 3, warm_ups=0, control=control).control_seconds
    assert log == ["control", "run"] * 3
    assert len(seconds) == 3


def test_the_control_may_come_after() -> None:
    log: list[str] = []
    delays = iter([0.2, 0.0, 0.0, 0.0])

    def control() -> None:
        log.append("control")
        time.sleep(next(delays))

    beside = time_rounds(FakeBenchmark(), lambda: log.append("run"), 3, control=control, control_after=True)
    assert log == ["run", "control"] * 4
    assert len(beside.control_seconds) == 3
    assert max(beside.control_seconds) < 0.1  # the warm-up's is not kept


def test_the_warm_ups_control_is_not_kept() -> None:
    delays = iter([0.2, 0.0, 0.0, 0.0])
    beside = time_rounds(FakeBenchmark(), lambda: None, 3, control=lambda: time.sleep(next(delays)))
    assert max(beside.control_seconds) < 0.1


def test_without_a_control_there_is_none() -> None:
    assert time_rounds(FakeBenchmark(), lambda: None, 3) == ([], [])


def test_progress_counts_the_rounds_that_are_done() -> None:
    done: list[int] = []
    time_rounds(FakeBenchmark(), lambda: None, 3, between=done.append)
    assert done == [0, 0, 1, 2]


def test_the_timed_region_holds_the_target_alone(benchmark: BenchmarkFixture) -> None:
    if benchmark.disabled:
        pytest.skip("needs pytest-benchmark enabled")

    def slow_reading() -> Reading:
        time.sleep(0.05)
        return Reading(0.03, 0.02)

    control, readings = time_rounds(
        benchmark,
        lambda: time.sleep(0.02),
        5,
        control=lambda: time.sleep(0.05),
        yardstick=slow_reading,
        between=lambda done: time.sleep(0.05),
    )
    assert len(control) == len(readings) == len(benchmark.stats.stats.data) == 5
    assert min(benchmark.stats.stats.data) == pytest.approx(0.02, abs=0.002)
    assert min(control) == pytest.approx(0.05, abs=0.002)


def test_foreign_load_is_what_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(100.0, 10.0, 1000.0), (107.0, 12.0, 1010.0)])
    monkeypatch.setattr("perf_tests.measure.device._cpu_seconds", lambda: next(readings))
    with StateWatch("cpu") as watch:
        pass
    assert watch.state["foreign_cpu_cores"] == pytest.approx(0.5)
    assert watch.state["gpu_sm_clock_hz"] is None


class FakeNvml:
    """NVML of a GPU that answers everything but its MIG mode."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU, NVML_DEVICE_MIG_ENABLE = 1, 0, 1

    class Process(NamedTuple):
        pid: int

    def __init__(self, *pids: int) -> None:
        self.processes = [self.Process(pid) for pid in pids]

    def nvmlInit(self) -> None: ...  # noqa: N802 - NVML's names

    def nvmlShutdown(self) -> None: ...  # noqa: N802

    def __getattr__(self, name: str) -> Callable[..., object]:
        answers = {
            "nvmlSystemGetDriverVersion": "570.1",
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetTemperature": 55,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 4,
            "nvmlDeviceGetComputeRunningProcesses": self.processes,
        }

        def answer(*args: object) -> object:
            if name not in answers:
                raise self.NVMLError(name)
            return answers[name]

        return answer


def test_the_gpus_state_is_asked_question_by_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(os.getpid(), 1))
    monkeypatch.setattr("perf_tests.measure.device._nvml_handle", lambda pynvml, device: "handle")
    assert query_nvml("cuda") == Nvml("570.1", None, 1_980_000_000, 55, 4, 1)


def test_a_container_knows_its_own_process_by_another_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(1, 2))
    monkeypatch.setattr("perf_tests.measure.device._nvml_handle", lambda pynvml, device: "handle")
    assert query_nvml("cuda").foreign_processes == 1


def test_a_gpu_that_says_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert query_nvml("cuda") == Nvml()


def test_own_load_is_not_foreign() -> None:
    with StateWatch("cpu") as watch:
        own = time.process_time()
        while time.process_time() < own + 0.5:
            pass
    assert watch.state["foreign_cpu_cores"] < 2
