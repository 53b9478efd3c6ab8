"""Several GPUs, or slices of one, of which torch sees some: what is measured, watched and named is one and the same."""

import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from perf_tests.ci import machine_check
from perf_tests.ci.command import check_machine, device_of
from perf_tests.common.errors import BadInputError
from perf_tests.machine import nvml
from perf_tests.machine.nvml import query_nvml
from perf_tests.machine.watch import StateWatch
from perf_tests.matrix import plan
from perf_tests.matrix.plan import Probes, choose_device
from perf_tests.session.locks import lock_name

SLICE = "MIG-cccc"


class Nvml:
    """NVML of two GPUs and a MIG slice of the second; somebody else's process runs on the first GPU and the slice."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU, NVML_DEVICE_MIG_ENABLE = 1, 0, 1
    PROCESSES: ClassVar = {"GPU-aaaa": [7, 8], "GPU-bbbb": [7], SLICE: [7, 9, 10]}
    NAMES: ClassVar = {"GPU-aaaa": "NVIDIA A", "GPU-bbbb": "NVIDIA B", SLICE: "NVIDIA B MIG 1g.10gb"}
    CLOCKS: ClassVar = {"GPU-aaaa": 100, "GPU-bbbb": 200}

    def __init__(self, mig: bool = False) -> None:
        self.mig = mig

    def __getattr__(self, question: str) -> Any:
        def answer(*arguments: Any) -> Any:
            gpu = arguments[0] if arguments else ""
            match question:
                case "nvmlInit" | "nvmlShutdown":
                    return None
                case "nvmlSystemGetDriverVersion":
                    return "580.1"
                case "nvmlDeviceGetHandleByUUID" if gpu in self.NAMES and (gpu != SLICE or self.mig):
                    return gpu
                case "nvmlDeviceGetDeviceHandleFromMigDeviceHandle" if gpu == SLICE:
                    return "GPU-bbbb"
                case "nvmlDeviceGetMigMode" if gpu in self.CLOCKS:
                    return (int(self.mig and gpu == "GPU-bbbb"), 0)
                case "nvmlDeviceGetComputeRunningProcesses":
                    return [SimpleNamespace(pid=pid) for pid in self.PROCESSES[gpu]]
                case "nvmlDeviceGetClockInfo" | "nvmlDeviceGetMaxClockInfo" if gpu in self.CLOCKS:
                    return self.CLOCKS[gpu]
                case "nvmlDeviceGetTemperature" if gpu in self.CLOCKS:
                    return 40
                case "nvmlDeviceGetMemoryInfo":
                    return SimpleNamespace(total=100, free=99)
                case "nvmlDeviceGetName":
                    return self.NAMES[gpu]
            raise self.NVMLError(question)

        return answer


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    made = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(nvml, "SAMPLE_SECONDS", 0.002)
    # The check before a job asks a process of its own; here it is this one.
    monkeypatch.setattr(machine_check, "ask_for_uuid", nvml.uuid_of)
    return made


def see(monkeypatch: pytest.MonkeyPatch, visible: str | None, *uuids: str) -> None:
    """Let torch see the GPUs of these UUIDs, in this order, as CUDA_VISIBLE_DEVICES has it."""
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(uuid=uuids[torch.device(device).index or 0]),
    )


VISIBLE = [
    (None, ("aaaa", "bbbb"), "cuda", "GPU-aaaa"),
    (None, ("aaaa", "bbbb"), "cuda:1", "GPU-bbbb"),
    (None, ("bbbb", "aaaa"), "cuda", "GPU-bbbb"),  # CUDA puts the fastest first, NVML goes by the bus
    ("1", ("bbbb",), "cuda", "GPU-bbbb"),
    ("1,0", ("bbbb", "aaaa"), "cuda:1", "GPU-aaaa"),
    ("GPU-bb", ("bbbb",), "cuda", "GPU-bbbb"),
    ("GPU-bbbb,GPU-aaaa", ("GPU-bbbb", "GPU-aaaa"), "cuda:1", "GPU-aaaa"),
    (SLICE, ("cccc",), "cuda", SLICE),
    (SLICE, ("bbbb",), "cuda:0", SLICE),  # the board's UUID, as torch may have it
    ("0", ("cccc",), "cuda", SLICE),
]


@pytest.mark.parametrize(("visible", "uuids", "device", "meant"), VISIBLE)
def test_what_is_measured_is_watched_and_named(
    visible: str | None, uuids: tuple[str, ...], device: str, meant: str, machine: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.mig = meant == SLICE
    see(monkeypatch, visible, *uuids)
    with StateWatch(device) as watch:
        pass
    samples = watch.record([])["gpu"]
    assert samples["foreign_processes"][0] == len(machine.PROCESSES[meant]) - 1
    assert samples["sm_clock_hz"][0] == 1e6 * machine.CLOCKS["GPU-aaaa" if meant == "GPU-aaaa" else "GPU-bbbb"]
    assert samples["temperature_celsius"][0] == 40
    assert query_nvml(device) == nvml.Nvml("580.1", meant == SLICE)
    gpu = machine_check.look_at_gpu(device)
    assert gpu is not None
    assert gpu.name == machine.NAMES[meant]
    assert gpu.processes == tuple(machine.PROCESSES[meant])
    assert uuids[torch.device(device).index or 0] in lock_name(device)


def test_another_gpu_may_be_busy(
    machine: Nvml, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Nvml, "PROCESSES", {"GPU-aaaa": [7], "GPU-bbbb": []})
    see(monkeypatch, None, "aaaa", "bbbb")
    with pytest.raises(BadInputError, match=r"NVIDIA A: in use by other processes \(7\)"):
        check_machine(device_of([]))
    check_machine(device_of(["-k", "tiny.en", "--perf-device", "cuda:1"]))
    check_machine(device_of(["--perf-device=cpu"]))
    see(monkeypatch, "1", "bbbb")
    check_machine(device_of([]))
    printed = capsys.readouterr().out
    assert (printed.count("NVIDIA A: "), printed.count("NVIDIA B: "), printed.count("no GPU")) == (1, 2, 1)


def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A driver that is at work says nothing of a GPU, as in a container without `--gpus`."""
    monkeypatch.setattr(plan, "count_cuda_devices", lambda: 0)
    probes = Probes(lambda: True, plan.count_cuda_devices, lambda dtype: True)
    assert choose_device(None, probes) == ("cpu", "CPU: torch sees no GPU")
    with pytest.raises(BadInputError, match="torch sees no GPU"):
        choose_device("cuda", probes)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    assert machine_check.ask_for_uuid("cuda") is None  # really: a process of its own, in which torch has no CUDA
    check_machine("cuda")
    assert "no GPU to look at" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["the package", "the driver"])
def test_without_nvml_the_job_goes_on(
    missing: str, machine: Nvml, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_driver() -> None:
        raise machine.NVMLError

    if missing == "the package":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    else:
        machine.nvmlInit = no_driver
    see(monkeypatch, None, "aaaa")
    check_machine("cuda")
    assert "no GPU to look at" in capsys.readouterr().out
    assert query_nvml("cuda") == nvml.Nvml()
