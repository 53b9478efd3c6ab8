"""The machine's state beside the rounds: how it is watched, and what is shown of it."""

import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from perf_tests.machine import nvml, watch
from perf_tests.machine.nvml import Nvml, query_nvml
from perf_tests.machine.watch import StateWatch
from perf_tests.measure.time import time_rounds
from perf_tests.runs.device_state import Cores
from perf_tests.runs.journal import Entry
from perf_tests.runs.schema import EXTRA_INFO
from perf_tests.runs.validation import validate
from perf_tests.session import table
from tests.make_runs import make_gpu_samples
from tests.measure.test_time import FakeBenchmark

# Load on the CPU


class CpuTimes(NamedTuple):
    user: float
    idle: float


class FakeMachine:
    """Two cores and their clock, which goes on when told to; this process keeps one of them busy."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now = 1000.0
        self.others = 500.0
        self.tick = tick

    def work(self, seconds: float, foreign_cores: float = 0.0) -> None:
        self.now += seconds
        self.others += foreign_cores * seconds

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now - 900.0

    def cpu_times(self) -> CpuTimes:
        busy = self.others + self.process_time()
        return CpuTimes(busy if not self.tick else busy // self.tick * self.tick, 2 * self.now - busy)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    machine = FakeMachine()
    for module in ("machine.watch", "measure.time"):
        monkeypatch.setattr(f"perf_tests.{module}.time", machine)
    monkeypatch.setattr(watch.psutil, "cpu_times", machine.cpu_times)
    return machine


def watch_rounds(machine: FakeMachine, rounds: list[tuple[float, float]], warm_up: tuple[float, float]) -> Any:
    """The record of rounds that take so long, with so many cores busy elsewhere."""
    plan = iter([warm_up, *rounds])
    with StateWatch("cpu") as watch:
        beside = time_rounds(
            FakeBenchmark(), lambda: machine.work(*next(plan)), len(rounds), between=watch.between_rounds
        )
    return watch.record(beside.spans)


def test_each_round_has_its_own_load(machine: FakeMachine) -> None:
    record = watch_rounds(machine, [(1.0, 0.0), (2.0, 0.75), (1.0, 0.0)], warm_up=(0.5, 1.0))
    assert record["rounds"]["foreign_cpu_cores"] == pytest.approx([0.0, 0.75, 0.0])
    assert record["rounds"]["begin_seconds"] == pytest.approx([0.5, 1.5, 3.5])
    assert record["rounds"]["end_seconds"] == pytest.approx([1.5, 3.5, 4.5])
    assert record["foreign_cpu_cores"] == pytest.approx(1.5 / 4)  # the warm-up is outside
    assert record["gpu"] is None
    (field,) = [field for field in EXTRA_INFO if field.name == "device_state"]
    assert not [*validate(record, field.fields, "device_state")]


def test_short_rounds_share_a_reading(machine: FakeMachine) -> None:
    rounds = [(0.06, 1.0 if 4 <= index < 8 else 0.0) for index in range(10)]
    record = watch_rounds(machine, rounds, warm_up=(0.06, 2.0))
    # The last two are too short for a reading of their own, so that one serves six.
    assert record["rounds"]["foreign_cpu_cores"] == pytest.approx([0.0] * 4 + [4 / 6] * 6, abs=1e-3)
    assert record["foreign_cpu_cores"] == pytest.approx(0.4)


def test_the_systems_ticks_are_no_load(machine: FakeMachine) -> None:
    machine.tick = 0.01
    record = watch_rounds(machine, [(0.0137, 0.0)] * 200, warm_up=(0.0137, 0.0))
    assert max(record["rounds"]["foreign_cpu_cores"]) < 0.06


def test_a_block_without_rounds_has_a_load_too(machine: FakeMachine) -> None:
    with StateWatch("cpu") as watch:
        machine.work(10.0, 0.5)
    assert watch.foreign_cpu_cores == pytest.approx(0.5)


# The GPU


class FakeNvml:
    """NVML of a GPU that answers everything but its MIG mode; `clock` is its own, `asked` counts the questions."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU, NVML_DEVICE_MIG_ENABLE = 1, 0, 1

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.clock = 1980
        self.refused = {"nvmlDeviceGetMigMode"}
        self.processes = [7, 8]
        self.sampled = threading.Condition()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers: dict[str, object] = {
            "nvmlSystemGetDriverVersion": "570.1",
            "nvmlDeviceGetClockInfo": self.clock,
            "nvmlDeviceGetTemperature": 55,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 4,
            "nvmlDeviceGetComputeRunningProcesses": self.processes,
        }

        def answer(*args: object) -> object:
            if name.startswith("nvmlDevice"):
                assert args[0] in ("GPU-1234", "MIG-1234")
            if name in self.refused:
                raise self.NVMLError(name)
            with self.sampled:
                self.asked[name] += 1
                self.sampled.notify_all()
            return answers.get(name, args[0] if args else None)

        return answer

    def wait_for_samples(self, count: int) -> None:
        """Wait until so many more were asked for to their end."""
        last = "nvmlDeviceGetCurrentClocksThrottleReasons"
        with self.sampled:
            goal = self.asked[last] + count
            assert self.sampled.wait_for(lambda: self.asked[last] >= goal, timeout=60)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """NVML of the one GPU that torch sees; no thread is left, and what was opened is closed."""
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    monkeypatch.setattr(nvml, "SAMPLE_SECONDS", 0.002)
    yield fake
    assert not samplers()
    assert fake.asked["nvmlInit"] == fake.asked["nvmlShutdown"]


def samplers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "nvml-sampler"]


def test_the_driver_is_asked_question_by_question(gpu: FakeNvml) -> None:
    assert query_nvml("cuda") == Nvml("570.1", None)


def test_each_round_has_its_own_samples(gpu: FakeNvml) -> None:
    clocks = iter([100, 200, 300, 400])  # the warm-up's first

    def run() -> None:
        gpu.clock = next(clocks)
        gpu.wait_for_samples(2)  # the second begins within the round

    with StateWatch("cuda") as watch:
        beside = time_rounds(FakeBenchmark(), run, 3, between=watch.between_rounds)
    record = watch.record(beside.spans)
    samples, rounds = record["gpu"], record["rounds"]
    assert samples["at_seconds"] == sorted(samples["at_seconds"])
    for index, span in enumerate(zip(rounds["begin_seconds"], rounds["end_seconds"], strict=True)):
        taken = [*zip(samples["at_seconds"], samples["sm_clock_hz"], strict=True)]
        clock = 1e6 * (200 + 100 * index)
        within = {value for at, value in taken if span[0] <= at <= span[1]}
        assert clock in within
        assert within <= {clock, clock + 1e8}  # one may have begun as the round ended
    # Of those before the rounds one is kept, and one is taken after them.
    assert samples["at_seconds"][1] >= rounds["begin_seconds"][0]
    assert samples["at_seconds"][-1] >= rounds["end_seconds"][-1]
    assert samples["foreign_processes"] == [1] * len(samples["at_seconds"])
    assert samples["sampler_cpu_seconds"] > 0
    (field,) = [field for field in EXTRA_INFO if field.name == "device_state"]
    assert not [*validate(record, field.fields, "device_state")]


def test_a_refused_sample_is_null(gpu: FakeNvml) -> None:
    with StateWatch("cuda") as watch:
        gpu.wait_for_samples(2)
        gpu.refused |= {"nvmlDeviceGetClockInfo", "nvmlDeviceGetComputeRunningProcesses"}
        gpu.wait_for_samples(2)
    samples = watch.record([])["gpu"]
    assert samples["sm_clock_hz"][0] == 1_980_000_000
    assert samples["foreign_processes"][0] == 1
    assert samples["sm_clock_hz"][-1] is samples["foreign_processes"][-1] is None
    assert samples["temperature_celsius"][-1] == 55


def test_the_sampling_ends_with_a_round_that_fails(gpu: FakeNvml) -> None:
    def fail() -> None:
        gpu.wait_for_samples(1)
        assert samplers()
        raise RuntimeError("CUDA error: an illegal memory access")

    with pytest.raises(RuntimeError, match="illegal"), StateWatch("cuda") as watch:
        time_rounds(FakeBenchmark(), fail, 3, between=watch.between_rounds)
    assert not samplers()


@pytest.mark.parametrize("missing", ["nvidia-ml-py", "nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_without_nvml_there_are_no_samples(missing: str, gpu: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "nvidia-ml-py":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    gpu.refused.add(missing)
    with StateWatch("cuda") as watch:
        assert not samplers()
    samples = watch.record([])["gpu"]
    assert samples.pop("sampler_cpu_seconds") == 0
    assert {*map(len, samples.values())} == {0}
    assert query_nvml("cuda") == Nvml()


# What is shown


def make_entry(state: dict[str, Any], name: str = "case") -> Entry:
    info = {
        "device_state": state,
        "speedup": None,
        "peak_memory_allocated_bytes": 1,
        "tokens_per_second": 1.0,
        "fraction_of_limit": None,
        "word_error_rate": None,
        "parity": {"tokens_equal": True, "max_abs_error": 0.0, "bound": 1.0},
    }
    bench = {"group": "cell", "stats": {"rounds": 2, "median": 1.0}, "extra_info": info}
    return Entry(f"test_generate[{name}]", "passed", None, bench | {"params": {"setting": "single"}}, 0)


CORES = Cores(needed=2, spare=0)
CALM = {"foreign_cpu_cores": 0.0, "rounds": {"foreign_cpu_cores": [0.0, 0.1, 0.02]}, "gpu": None}


@pytest.mark.parametrize(
    ("state", "note"),
    [
        ({"foreign_cpu_cores": 0.9}, "! others used cores that the rounds need"),
        ({"gpu": make_gpu_samples(foreign_processes=[0, None, 1])}, "! others"),
        ({"gpu": make_gpu_samples(throttle_reasons=[0, 0x40, None])}, "! the GPU's clocks were throttled"),
    ],
)
def test_what_was_measured_on_a_busy_machine_is_flagged(state: dict[str, Any], note: str) -> None:
    idle_and_capped = make_gpu_samples(throttle_reasons=[0x4, 0x5, None])
    assert "!" not in table.render_table([make_entry(CALM | {"gpu": idle_and_capped})], CORES, colour=False)
    text = table.render_table([make_entry(CALM | state)], CORES, colour=False)
    assert "100.0 !" in text
    assert note in text


def test_cores_that_the_rounds_leave_idle_are_free() -> None:
    busy = [make_entry(CALM | {"foreign_cpu_cores": 2.5})]
    for cores, flagged in ((Cores(2, 2), True), (Cores(2, 14), False), (Cores(16, 0), True), (Cores(64, 0), False)):
        assert ("!" in table.render_table(busy, cores, colour=False)) is flagged


def meanwhile(*entries: Entry) -> list[list[str]]:
    """The rows of the table's part on the machine's state."""
    text = table.render_table(entries, CORES, colour=False)
    part = text.partition("meanwhile (least / median / most)")[2].partition("time: median")[0]
    return [re.split("  +", line.strip()) for line in part.splitlines() if line.strip(" ─")]


def test_least_median_and_most_are_shown() -> None:
    samples = make_gpu_samples(
        sm_clock_hz=[1_980_000_000, None, 345_000_000, 1_755_000_000],
        temperature_celsius=[40, 40, 40, None],
        throttle_reasons=[0, 0x40, 0x4, None],
    )
    loads = CALM | {"rounds": {"foreign_cpu_cores": [0.0, 0.5, 0.02]}}
    assert meanwhile(make_entry(loads | {"gpu": samples}, "warm"), make_entry(CALM, "cool")) == [
        ["others' load, cores", "SM clock, MHz", "GPU, °C", "throttled"],
        ["warm", "0.00 / 0.02 / 0.50", "345 / 1755 / 1980", "40", "1 of 3 samples"],
    ]


def test_a_calm_cpu_is_not_spoken_of() -> None:
    assert meanwhile(make_entry(CALM)) == []


def test_a_load_that_came_and_went_is_shown() -> None:
    loads = CALM | {"rounds": {"foreign_cpu_cores": [0.0, 0.5, 0.0]}}
    assert meanwhile(make_entry(CALM, "one"), make_entry(loads, "other")) == [
        ["others' load, cores"],
        ["other", "0.00 / 0.00 / 0.50"],
    ]


def test_that_nothing_is_known_of_a_gpu_is_said_once() -> None:
    silent = CALM | {"gpu": {"at_seconds": [], "sm_clock_hz": []}}
    text = table.render_table([make_entry(silent, "one"), make_entry(silent, "other")], CORES, colour=False)
    assert text.count("the GPU's clocks are not known") == 1
