"""Each case over the saved runs of one machine: control-corrected speed-up, absolute time, memory, counters."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from perf_tests.runs.views import CaseView, RunView

from .change_points import ChangePoint, find_change_points
from .rows import ATEN_OPS, FLOPS, MEMORY


class Point(NamedTuple):
    """A case in one run. Seconds are medians of rounds; the speed-up is control / flash, from pairs."""

    seconds: float | None
    control_seconds: float | None
    speedup: float | None
    low: float | None
    high: float | None
    memory_bytes: float | None
    aten_ops: float | None
    flops: float | None


class HistoryRun(NamedTuple):
    """What is kept of a run once it has been read; ``points`` by case id and definition."""

    path: Path
    name: str
    commit: str | None
    dirty: bool
    datetime: str
    points: dict[tuple[str, str], Point]
    baseline: str | None = None


class Series(NamedTuple):
    """A case over runs: ``points[i]`` is of run ``indices[i]``, in their order.

    ``changes`` are the change points of the control-corrected speed-up, by position in ``points``; empty for a case
    without a control, whose times are the machine's as much as the code's.
    """

    case_id: str
    definition: str
    indices: tuple[int, ...]
    points: tuple[Point, ...]
    changes: tuple[ChangePoint, ...]

    @property
    def corrected(self) -> bool:
        """Whether it has a control."""
        return any(point.speedup is not None for point in self.points)


def remember(run: RunView) -> HistoryRun:
    """Keep of ``run`` what history shows."""
    points = {(case.id, case.definition): _point(case) for case in run.cases if case.measured}
    return HistoryRun(run.path, run.name, run.commit, run.dirty, run.datetime, points)


def make_series(runs: Sequence[HistoryRun]) -> list[Series]:
    """The cases of ``runs`` over time, in the order of the newest run that has them."""
    places: dict[tuple[str, str], list[int]] = {}
    for run in reversed(runs):
        for key in run.points:
            places.setdefault(key, [])
    for index, run in enumerate(runs):
        for key in run.points:
            places[key].append(index)
    return [_series(key, indices, runs) for key, indices in places.items()]


def _series(key: tuple[str, str], indices: Sequence[int], runs: Sequence[HistoryRun]) -> Series:
    points = tuple(runs[index].points[key] for index in indices)
    corrected = [(place, point.speedup) for place, point in enumerate(points) if point.speedup is not None]
    changes = [
        change._replace(place=corrected[change.place][0])
        for change in find_change_points([speedup for _, speedup in corrected])
    ]
    return Series(*key, tuple(indices), points, tuple(changes))


def _point(case: CaseView) -> Point:
    speedup = case.speedup
    control = sorted(case.control_seconds)
    return Point(
        seconds=case.median_seconds,
        control_seconds=control[len(control) // 2] if control else None,
        speedup=speedup.median if speedup else None,
        low=speedup.low if speedup else None,
        high=speedup.high if speedup else None,
        memory_bytes=case.value(MEMORY),
        aten_ops=case.value(ATEN_OPS),
        flops=case.value(FLOPS),
    )
