"""What NVML says about a torch device: asked once, or sampled by a thread while something else runs."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

SAMPLE_SECONDS = 0.1
MEGAHERTZ = 1_000_000


class Nvml(NamedTuple):
    """What stays as it is while the process runs; a field is ``None`` where NVML does not say."""

    driver: str | None = None
    mig: bool | None = None


class Sample(NamedTuple):
    """A GPU's state at one time of ``time.perf_counter``; a field is ``None`` where NVML does not say."""

    at: float
    sm_clock_hz: int | None
    temperature_celsius: int | None
    throttle_reasons: int | None
    foreign_processes: int | None


class Samples:
    """A GPU's state over a while, and what CPU time it took to ask; both are whole once the sampling has ended."""

    def __init__(self) -> None:
        self.taken: list[Sample] = []
        self.cpu_seconds = 0.0

    def take(self, gpu: "Gpu", stop: threading.Event) -> None:
        """Take a sample now, every ``SAMPLE_SECONDS`` until told to stop, and a last one then."""
        while True:
            stopped = stop.is_set()
            self.taken.append(gpu.sample())
            self.cpu_seconds = time.thread_time()
            if stopped:
                return
            stop.wait(SAMPLE_SECONDS)


class Gpu:
    """A GPU, or a MIG slice of the one whose handle is ``board``, as NVML knows it.

    A slice has processes of its own, and its board's clocks and temperature. A question that NVML refuses is answered
    ``None``.
    """

    def __init__(self, pynvml: Any, handle: Any, board: Any = None) -> None:
        self._nvml = pynvml
        self._handle = handle
        self._board = handle if board is None else board

    def describe(self) -> Nvml:
        """Driver and mode."""
        mig = self._ask("nvmlDeviceGetMigMode", self._board)
        return Nvml(
            driver=self._ask("nvmlSystemGetDriverVersion"),
            mig=None if mig is None else mig[0] == self._nvml.NVML_DEVICE_MIG_ENABLE,
        )

    def sample(self) -> Sample:
        """Its state now."""
        at = time.perf_counter()
        clock = self._ask("nvmlDeviceGetClockInfo", self._board, self._nvml.NVML_CLOCK_SM)
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses", self._handle)
        return Sample(
            at=at,
            sm_clock_hz=None if clock is None else MEGAHERTZ * clock,
            temperature_celsius=self._ask("nvmlDeviceGetTemperature", self._board, self._nvml.NVML_TEMPERATURE_GPU),
            throttle_reasons=self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", self._board),
            # All but this one, whatever its number: in a container NVML gives the number that the host knows.
            foreign_processes=None if processes is None else max(0, len(processes) - 1),
        )

    def _ask(self, question: str, *arguments: Any) -> Any:
        return ask(self._nvml, question, *arguments)


@contextmanager
def sample_gpu(device: str) -> Iterator[Samples]:
    """Sample a GPU's state from a thread of its own over a ``with`` block; nothing where NVML is missing.

    The thread sleeps between samples, and NVML's calls leave the interpreter's lock to others. It has ended when the
    block has, in whichever way.
    """
    samples, stop = Samples(), threading.Event()
    with open_gpu(device) as gpu:
        if gpu is None:
            yield samples
            return
        thread = threading.Thread(target=samples.take, args=(gpu, stop), name="nvml-sampler", daemon=True)
        thread.start()
        try:
            yield samples
        finally:
            stop.set()
            thread.join()


def query_nvml(device: str) -> Nvml:
    """Ask NVML about a torch device; an empty answer where nvidia-ml-py or the driver is missing."""
    with open_gpu(device) as gpu:
        return Nvml() if gpu is None else gpu.describe()


@contextmanager
def open_gpu(device: str) -> Iterator[Gpu | None]:
    """A torch device as NVML knows it; ``None`` where nvidia-ml-py or the driver is missing."""
    pynvml = load()
    if pynvml is None:
        yield None
        return
    try:
        handles = find_handles(pynvml, device, uuid_of(device))
        yield Gpu(pynvml, *handles) if handles else None
    finally:
        pynvml.nvmlShutdown()


def load() -> Any:
    """nvidia-ml-py, initialized; ``None`` where it or the driver is missing. Who gets it shuts it down."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def ask(pynvml: Any, question: str, *arguments: Any) -> Any:
    """NVML's answer; ``None`` where it refuses one."""
    try:
        return getattr(pynvml, question)(*arguments)
    except pynvml.NVMLError:
        return None


def uuid_of(device: str) -> str:
    """The UUID of a torch device, as torch has it: with NVML's ``GPU-`` or ``MIG-`` before it, or without."""
    import torch

    return str(torch.cuda.get_device_properties(torch.device(device)).uuid)


def find_handles(pynvml: Any, device: str, uuid: str) -> tuple[Any, Any] | None:
    """NVML's handles of a torch device and of the board that it is on, which are the same but for a MIG slice.

    NVML counts all GPUs, torch the visible ones, maybe in another order: so they are told by their UUIDs. Of a slice
    torch may report the board's; then what CUDA_VISIBLE_DEVICES says is asked for first.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    index = int(device.partition(":")[2] or 0)
    chosen = visible[index].strip() if index < len(visible) else ""
    bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
    for name in (*([chosen] if chosen.startswith("MIG-") else []), f"GPU-{bare}", f"MIG-{bare}"):
        handle = ask(pynvml, "nvmlDeviceGetHandleByUUID", name)
        if handle is not None:
            mig = name.startswith("MIG-")
            board = ask(pynvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle) if mig else None
            return handle, handle if board is None else board
    return None
