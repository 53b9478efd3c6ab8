"""How much may change: thresholds by metric, from the defaults, ``pyproject.toml`` and the command line."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from perf_tests.runs.records import COUNTERS, MEMORY

from .patterns import matches

TIME, PARITY = "time", "parity"
KINDS = (TIME, "memory", "counters", PARITY)
KIND_OF = {TIME: TIME, PARITY: PARITY} | dict.fromkeys(MEMORY, "memory") | dict.fromkeys(COUNTERS, "counters")
# Relative growth that is allowed; growth of just that much still is.
DEFAULTS: Mapping[str, float] = {TIME: 0.03, "memory": 0.01, "counters": 0.0}
# Of time where several processes measured each side, as ``ab`` does: a smaller change counts.
DEFAULT_OF_PROCESSES = 0.02
# What this machine's noise is taken for where it was not calibrated.
DEFAULT_NOISE = 0.03
# The CUDA caching allocator reserves in segments of up to 20 MiB (c10/cuda/CUDACachingAllocator.cpp, kLargeBuffer):
# one more or less depends on what ran before.
RESERVED_SEGMENT_BYTES = 20 * 1024 * 1024


class Threshold(NamedTuple):
    """A threshold for the cases that match a pattern; ``metric`` is a metric's name or a kind's."""

    case: str
    metric: str
    allowed: float

    def covers(self, case_id: str, metric: str) -> bool:
        """Whether it is about this metric of this case."""
        return self.metric in (metric, KIND_OF[metric]) and matches(self.case, case_id)


class Accepted(NamedTuple):
    """Growth that is meant: up to ``limit`` (relative to BASE) is no regression, for the reason given."""

    case: str
    metric: str
    limit: float
    reason: str

    def covers(self, case_id: str, metric: str) -> bool:
        """Whether it is about this metric of this case."""
        return self.metric in (metric, KIND_OF[metric]) and matches(self.case, case_id)


class Rules(NamedTuple):
    """All that decides a verdict, apart from the runs and the machine's noise.

    ``command_line`` holds a threshold by kind; ``patterns`` and ``accepted`` come from ``pyproject.toml``.
    """

    kinds: frozenset[str] = frozenset(KINDS)
    command_line: Mapping[str, float] = {}
    patterns: Sequence[Threshold] = ()
    accepted: Sequence[Accepted] = ()

    def allowed(self, case_id: str, metric: str, processes: int = 1) -> float:
        """Relative growth that is allowed: what was typed, else the last pattern that matches, else the default.

        ``processes`` is how many measured each side.
        """
        kind = KIND_OF[metric]
        if kind in self.command_line:
            return self.command_line[kind]
        for threshold in reversed(self.patterns):
            if threshold.covers(case_id, metric):
                return threshold.allowed
        return DEFAULT_OF_PROCESSES if kind == TIME and processes > 1 else DEFAULTS[kind]

    def acceptance(self, case_id: str, metric: str, growth: float) -> Accepted | None:
        """The entry that accepts so much growth, if there is one."""
        return next((e for e in self.accepted if e.covers(case_id, metric) and growth <= e.limit), None)
