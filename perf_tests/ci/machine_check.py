"""The machine before a job: whether the GPU is free and cool, and how it is set. It looks, and changes nothing."""

import subprocess
import sys
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]

from perf_tests.machine import cores, nvml

# A display server or a monitor may hold some of the memory; a job of somebody else holds more.
MOST_USED_SHARE = 0.05
MOST_CELSIUS = 80
# Asked in a process of its own: who asks may be left with a CUDA context, and be a stranger to the one that measures.
QUESTION = "import sys; from perf_tests.machine.nvml import uuid_of; print(uuid_of(sys.argv[1]))"


class Gpu(NamedTuple):
    """One GPU's state; ``None`` where NVML does not say. Bytes, °C, MHz and W."""

    name: str
    driver: str | None = None
    memory_bytes: int | None = None
    free_bytes: int | None = None
    processes: tuple[int, ...] = ()
    celsius: int | None = None
    persistence: bool | None = None
    mig: bool | None = None
    sm_clock_mhz: int | None = None
    most_sm_clock_mhz: int | None = None
    power_limit_watts: float | None = None
    throttle_reasons: int | None = None

    def describe(self) -> str:
        """One line with what is reported and not judged."""
        share = None
        if self.memory_bytes and self.free_bytes is not None:
            share = f"{self.free_bytes / 1e9:.1f} of {self.memory_bytes / 1e9:.1f} GB free"
        settings = {
            "driver": self.driver,
            "memory": share,
            "temperature": None if self.celsius is None else f"{self.celsius} °C",
            "persistence": _on(self.persistence),
            "MIG": _on(self.mig),
            "SM clock": None if self.sm_clock_mhz is None else f"{self.sm_clock_mhz} of {self.most_sm_clock_mhz} MHz",
            "power limit": None if self.power_limit_watts is None else f"{self.power_limit_watts:.0f} W",
            "throttle reasons": None if self.throttle_reasons is None else f"{self.throttle_reasons:#x}",
        }
        return f"{self.name}: " + ", ".join(f"{name} {value or 'unknown'}" for name, value in settings.items())

    def problems(self) -> list[str]:
        """Why nothing should be measured on it now."""
        found = []
        if self.processes:
            pids = ", ".join(map(str, self.processes))
            found.append(f"{self.name}: in use by other processes ({pids})")
        if self.memory_bytes and self.free_bytes is not None:
            used = 1 - self.free_bytes / self.memory_bytes
            if used > MOST_USED_SHARE:
                found.append(f"{self.name}: {100 * used:.0f} % of its memory is in use already")
        if self.celsius is not None and self.celsius > MOST_CELSIUS:
            found.append(f"{self.name}: {self.celsius} °C before anything runs; more than {MOST_CELSIUS} °C")
        return found


def look_at_gpu(device: str) -> Gpu | None:
    """The GPU that torch calls ``device``, whatever others there are; ``None`` where NVML or torch knows none."""
    pynvml = nvml.load()
    if pynvml is None:
        return None
    try:
        uuid = ask_for_uuid(device)
        handles = nvml.find_handles(pynvml, device, uuid) if uuid else None
        return _look(pynvml, *handles) if handles else None
    finally:
        pynvml.nvmlShutdown()


def ask_for_uuid(device: str) -> str | None:
    """The UUID of a torch device; ``None`` where torch has no such device."""
    done = subprocess.run([sys.executable, "-c", QUESTION, device], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def describe_host() -> str:
    """One line on the host."""
    memory = psutil.virtual_memory()
    load = psutil.getloadavg()[0]
    free = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    return f"host: {cores.available():.3g} of {psutil.cpu_count()} cores, load {load:.1f}, {free}"


def _look(pynvml: Any, handle: Any, board: Any) -> Gpu:
    def ask(question: str, *arguments: Any) -> Any:
        return nvml.ask(pynvml, question, board, *arguments)

    memory = nvml.ask(pynvml, "nvmlDeviceGetMemoryInfo", handle)
    mig = ask("nvmlDeviceGetMigMode")
    persistence = ask("nvmlDeviceGetPersistenceMode")
    limit = ask("nvmlDeviceGetPowerManagementLimit")
    processes = nvml.ask(pynvml, "nvmlDeviceGetComputeRunningProcesses", handle) or []
    return Gpu(
        name=str(nvml.ask(pynvml, "nvmlDeviceGetName", handle)),
        driver=str(pynvml.nvmlSystemGetDriverVersion()),
        memory_bytes=memory and int(memory.total),
        free_bytes=memory and int(memory.free),
        processes=tuple(int(process.pid) for process in processes),
        celsius=ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
        persistence=None if persistence is None else bool(persistence),
        mig=None if mig is None else mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE,
        sm_clock_mhz=ask("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
        most_sm_clock_mhz=ask("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM),
        power_limit_watts=None if limit is None else limit / 1000,
        throttle_reasons=ask("nvmlDeviceGetCurrentClocksThrottleReasons"),
    )


def _on(flag: bool | None) -> str | None:
    return None if flag is None else "on" if flag else "off"
