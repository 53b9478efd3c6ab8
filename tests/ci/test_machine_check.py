"""The look at the machine before a job."""

import sys
import types
from typing import Any

import pytest

from perf_tests.ci import machine_check
from perf_tests.ci.command import check_machine
from perf_tests.ci.machine_check import Gpu, look_at_gpu
from perf_tests.common.errors import BadInputError

FREE = Gpu("NVIDIA H100", "580.1", 80_000_000_000, 79_000_000_000, (), 40, True, False, 1980, 1980, 700.0, 0)


def test_a_free_gpu_is_reported() -> None:
    assert FREE.problems() == []
    text = FREE.describe()
    for words in (
        "driver 580.1",
        "79.0 of 80.0 GB free",
        "40 °C",
        "persistence on",
        "MIG off",
        "1980 of 1980 MHz",
        "700 W",
    ):
        assert words in text


def test_what_nvml_does_not_say_is_unknown() -> None:
    silent = Gpu("NVIDIA H100 MIG 1g.10gb")
    assert silent.problems() == []
    assert "temperature unknown" in silent.describe()


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"processes": (4711,)}, "in use by other processes (4711)"),
        ({"free_bytes": 40_000_000_000}, "50 % of its memory is in use already"),
        ({"celsius": 88}, "88 °C before anything runs"),
    ],
)
def test_a_gpu_that_is_not_free_is_refused(
    state: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("perf_tests.ci.command.look_at_gpu", lambda device: FREE._replace(**state))
    with pytest.raises(BadInputError) as refused:
        check_machine("cuda")
    assert why in str(refused.value)
    assert capsys.readouterr().out.count("NVIDIA H100: driver") == 1


def test_nvml_is_read_and_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Error(Exception):
        pass

    class Nvml(types.ModuleType):
        NVMLError = Error
        NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_DEVICE_MIG_ENABLE = 0, 1, 1

        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            answers = {
                "nvmlDeviceGetHandleByUUID": "GPU-1234",
                "nvmlDeviceGetName": "NVIDIA L4",
                "nvmlSystemGetDriverVersion": "580.1",
                "nvmlDeviceGetMemoryInfo": types.SimpleNamespace(total=24_000, free=23_900),
                "nvmlDeviceGetComputeRunningProcesses": [],
                "nvmlDeviceGetTemperature": 35,
                "nvmlDeviceGetPowerManagementLimit": 72_000,
            }

            def answer(*arguments: object) -> object:
                if name in ("nvmlDeviceGetMigMode", "nvmlDeviceGetPersistenceMode"):
                    raise Error
                return answers.get(name)

            return answer

    monkeypatch.setitem(sys.modules, "pynvml", Nvml("pynvml"))
    monkeypatch.setattr(machine_check, "ask_for_uuid", lambda device: "GPU-1234")
    gpu = look_at_gpu("cuda")
    assert gpu is not None
    assert gpu._replace(processes=()) == Gpu("NVIDIA L4", "580.1", 24_000, 23_900, (), 35, power_limit_watts=72.0)
    assert "nvmlShutdown" in asked
    assert not [name for name in asked if "Set" in name or "Reset" in name]


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert look_at_gpu("cuda") is None
    assert "cores" in machine_check.describe_host()
