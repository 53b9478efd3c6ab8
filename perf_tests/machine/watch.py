"""The machine's state beside a case's rounds: foreign load on the CPU, clocks and company on the GPU."""

import time
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from types import TracebackType
from typing import Any, NamedTuple, Self

import psutil  # type: ignore[import-untyped]

from perf_tests.common.text import first_line

from .cores import affinity, available, find_quota
from .nvml import MEGAHERTZ, Sample, Samples, sample_gpu

# The system counts its cores' busy time in ticks of 10 ms, each of which is half a core over 20 ms. Between readings so
# far apart the load of an idle machine came out within 0.1 cores (two cores of an AMD EPYC, one or both in use).
READING_SECONDS = 0.2


class Span(NamedTuple):
    """When something began and ended, in seconds of ``time.perf_counter``."""

    begin: float
    end: float


class CpuReading(NamedTuple):
    """Seconds of ``time.perf_counter``, and of cores: what others have used until then, and a quota kept from us."""

    at: float
    foreign_seconds: float
    throttled_seconds: float = 0.0


class StateWatch:
    """Watches the machine over a ``with`` block in which rounds are run.

    A GPU's state is sampled by a thread. The CPU's load is read as the block begins and ends, and between rounds; those
    that are too short for a reading each share one.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._samples: Samples | None = None
        self._sampling = ExitStack()

    def __enter__(self) -> Self:
        self._readings = [_read_cpu()]
        self._began = self._readings[0].at
        if self.device.startswith("cuda"):
            self._samples = self._sampling.enter_context(sample_gpu(self.device))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._sampling:
            last = _read_cpu()
            if len(self._readings) > 1 and last.at - self._readings[-1].at < READING_SECONDS:
                self._readings.pop()
            self._readings.append(last)

    def between_rounds(self, done: int) -> None:
        """Read the CPU's load if that is due; before the first round always: what came earlier was the warm-up."""
        if done == 0:
            self._readings.clear()
        elif time.perf_counter() - self._readings[-1].at < READING_SECONDS:
            return
        self._readings.append(_read_cpu())

    @property
    def foreign_cpu_cores(self) -> float:
        """How many cores others kept busy, on average."""
        return _foreign_load(self._readings[0], self._readings[-1])

    def record(self, rounds: "Sequence[Span]") -> dict[str, Any]:
        """The record for the key ``device_state``, once the block has ended and its rounds are known."""
        starts = [reading.at for reading in self._readings[:-1]]
        loads = [_foreign_load(*pair) for pair in pairwise(self._readings)]
        return {
            "load_average": _load_average(),
            "foreign_cpu_cores": self.foreign_cpu_cores,
            "cpu_frequency_hz": _cpu_frequency(),
            "rounds": {
                "begin_seconds": [self._since_began(span.begin) for span in rounds],
                "end_seconds": [self._since_began(span.end) for span in rounds],
                "foreign_cpu_cores": [round(loads[bisect_right(starts, span.begin) - 1], 3) for span in rounds],
            },
            "gpu": self._describe_gpu(self._samples, rounds) if self._samples is not None else None,
        }

    def _describe_gpu(self, samples: Samples, rounds: "Sequence[Span]") -> dict[str, Any]:
        """From the last sample before the rounds to the one after them."""
        taken = samples.taken
        if rounds:
            before = bisect_right([sample.at for sample in taken], rounds[0].begin)
            taken = taken[max(0, before - 1) :]
        columns = {name: [getattr(sample, name) for sample in taken] for name in Sample._fields}
        at = columns.pop("at")
        return {
            "at_seconds": [self._since_began(instant) for instant in at],
            **columns,
            "sampler_cpu_seconds": samples.cpu_seconds,
        }

    def _since_began(self, instant: float) -> float:
        return round(instant - self._began, 6)


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


def _read_cpu() -> CpuReading:
    """Of the CPUs that this process may run on: what is busy elsewhere takes nothing from it."""
    mine = affinity()
    if len(mine) == psutil.cpu_count():
        every = [psutil.cpu_times()]
    else:
        every = [times for number, times in enumerate(psutil.cpu_times(percpu=True)) if number in mine]
    busy = 0.0
    for times in every:
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Guests' time is part of user time already.
        busy += sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    quota = find_quota()
    throttled = quota.throttled_seconds() if quota else 0.0
    return CpuReading(time.perf_counter(), busy - time.process_time(), throttled)


def _foreign_load(early: CpuReading, late: CpuReading) -> float:
    """Cores, on average. What is own is known more finely than what is busy, so that little may look like less.

    Under a quota others first fill the cores that it leaves idle; while it holds this process back, those count.
    """
    wall = late.at - early.at
    if wall <= 0:
        return 0.0
    idle = len(affinity()) - available()
    foreign = (late.foreign_seconds - early.foreign_seconds) / wall - idle
    return max(0.0, foreign) + max(0.0, late.throttled_seconds - early.throttled_seconds) / wall


def _load_average() -> float | None:
    try:
        return float(psutil.getloadavg()[0])
    except OSError:
        return None


def _cpu_frequency() -> float | None:
    frequency = psutil.cpu_freq()
    return float(frequency.current * MEGAHERTZ) if frequency else None
