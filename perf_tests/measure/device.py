"""The machine's state beside a case's rounds: foreign load on the CPU, clocks and company on the GPU."""

import time
from types import TracebackType
from typing import Any, NamedTuple, Self

import psutil  # type: ignore[import-untyped]

from perf_tests.audio import first_line

MEGAHERTZ = 1_000_000


class Nvml(NamedTuple):
    """What NVML says about a GPU; every field ``None`` where it says nothing."""

    driver: str | None = None
    mig: bool | None = None
    sm_clock_hz: int | None = None
    temperature_celsius: int | None = None
    throttle_reasons: int | None = None
    foreign_processes: int | None = None


class StateWatch:
    """Watches the machine over a ``with`` block; ``state`` is the record for the key ``device_state``."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.state: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._start = _cpu_seconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before, after = self._start, _cpu_seconds()
        busy, own, wall = (late - early for early, late in zip(before, after, strict=True))
        nvml = query_nvml(self.device) if self.device.startswith("cuda") else Nvml()
        self.state = {
            "load_average": _load_average(),
            "foreign_cpu_cores": max(0.0, (busy - own) / wall) if wall > 0 else 0.0,
            "cpu_frequency_hz": _cpu_frequency(),
            "gpu_sm_clock_hz": nvml.sm_clock_hz,
            "gpu_temperature_celsius": nvml.temperature_celsius,
            "gpu_throttle_reasons": nvml.throttle_reasons,
            "gpu_foreign_processes": nvml.foreign_processes,
        }


def lost_device(device: str) -> str | None:
    """Why a torch device takes no more work of this process, or ``None``: CUDA refuses every call after some errors."""
    if not device.startswith("cuda"):
        return None
    import torch

    try:
        torch.cuda.synchronize(torch.device(device))
    except RuntimeError as error:
        return first_line(error)
    return None


def query_nvml(device: str) -> Nvml:
    """Ask NVML about a torch device; an empty answer where nvidia-ml-py or the driver is missing."""
    try:
        import pynvml
    except ImportError:
        return Nvml()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return Nvml()
    try:
        handle = _nvml_handle(pynvml, device)
        return Nvml(
            driver=_ask(pynvml, lambda: str(pynvml.nvmlSystemGetDriverVersion())),
            mig=_ask(pynvml, lambda: pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE),
            sm_clock_hz=_ask(pynvml, lambda: MEGAHERTZ * pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            temperature_celsius=_ask(
                pynvml, lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
            ),
            throttle_reasons=_ask(pynvml, lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            foreign_processes=_ask(pynvml, lambda: _count_foreign(pynvml, handle)),
        )
    except pynvml.NVMLError:
        return Nvml()
    finally:
        pynvml.nvmlShutdown()


def _nvml_handle(pynvml: Any, device: str) -> Any:
    """NVML counts all GPUs, torch the visible ones: go by the UUID that torch reports."""
    import torch

    uuid = str(torch.cuda.get_device_properties(torch.device(device)).uuid)
    return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")


def _ask(pynvml: Any, question: Any) -> Any:
    """The answer, or ``None`` where this GPU does not answer this question (a MIG slice, say)."""
    try:
        return question()
    except pynvml.NVMLError:
        return None


def _count_foreign(pynvml: Any, handle: Any) -> int:
    """Processes beside this one, which uses the GPU: in a container NVML gives it the number that the host knows."""
    return max(0, len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) - 1)


def _cpu_seconds() -> tuple[float, float, float]:
    """Seconds that all cores were busy, that this process used, and of the clock."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Guests' time is part of user time already.
    busy = sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    own = psutil.Process().cpu_times()
    return busy, own.user + own.system, time.perf_counter()


def _load_average() -> float | None:
    try:
        return float(psutil.getloadavg()[0])
    except OSError:
        return None


def _cpu_frequency() -> float | None:
    frequency = psutil.cpu_freq()
    return float(frequency.current * MEGAHERTZ) if frequency else None
