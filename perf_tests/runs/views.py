"""A saved run as a report sees it: whatever is there is shown, and nothing has to be.

The strict view (``saved.py``) refuses what cannot be judged. A report also shows cases without rounds, without a
control or of somebody else's benchmarks, so each value here is read on demand and is ``None`` where the JSON has none,
or one that is no number.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from perf_tests.common.errors import BadInputError
from perf_tests.common.intervals import Estimate
from perf_tests.common.text import LONGEST, clean
from perf_tests.runs.document import CaseDocument, Unreadable, in_utc, mapping, parse_document, read_bytes, take_apart
from perf_tests.runs.records import WALL_CLOCK, timer_of


class CaseView:
    """One case of a run, measured or not. Times in seconds, memory in bytes."""

    def __init__(self, case: CaseDocument, known: Mapping[str, Mapping[str, Any]]) -> None:
        self.id = _text(case.id) or ""
        self.outcome = _text(case.outcome) or ""
        self.reason = _text(case.reason)
        self.bench = case.bench
        self.counted = case.counted
        self.info = mapping(case.bench.get("extra_info"))
        params = mapping(case.bench.get("params")) or known.get(case.id, {})
        self.checkpoint = _text(params.get("checkpoint"))
        self.setting = _text(params.get("setting"))
        self.implementation = _text(params.get("implementation"))
        layers = params.get("decoder_layers")
        self.decoder_layers = layers if isinstance(layers, int) and not isinstance(layers, bool) else None

    @property
    def test(self) -> str:
        """The test function that ran: the name without its parameters."""
        return self.id.partition("[")[0]

    @property
    def measured(self) -> bool:
        """Whether there is more of it than an outcome."""
        return bool(self.bench) and self.outcome == "passed"

    @property
    def timer(self) -> str:
        """The clock of its rounds."""
        return clean(timer_of(self.bench))

    @property
    def definition(self) -> str:
        """The hash of the work, empty where not recorded, and the clock where it is not the wall's.

        Cases of one id and two definitions are two things.
        """
        work = _text(self.info.get("case_definition")) or ""
        return work if self.timer == WALL_CLOCK else f"{work} by {self.timer}"

    @cached_property
    def seconds(self) -> tuple[float, ...]:
        """The raw rounds, where they were saved."""
        return _times(mapping(self.bench.get("stats")).get("data"))

    @property
    def median_seconds(self) -> float | None:
        if self.seconds:
            return median(self.seconds)
        recorded = number(mapping(self.bench.get("stats")).get("median"))
        return recorded if recorded is not None and recorded > 0 else None

    @property
    def rounds(self) -> int | None:
        """How many rounds there were; ``None`` where it was not timed."""
        if self.seconds:
            return len(self.seconds)
        count = number(mapping(self.bench.get("stats")).get("rounds"))
        return int(count) if count and self.median_seconds is not None else None

    @cached_property
    def control_seconds(self) -> tuple[float, ...]:
        """The control's rounds, each right before the round of the same index; empty where they do not pair."""
        control = _times(mapping(self.info.get("control")).get("rounds_seconds"))
        return control if len(control) == len(self.seconds) else ()

    @property
    def speedup(self) -> Estimate | None:
        """Control over flash from pairs of rounds, as recorded, else the pairs' median alone."""
        recorded = mapping(self.info.get("speedup"))
        middle, low, high = (number(recorded.get(key)) for key in Estimate._fields)
        if middle is not None and middle > 0:
            return Estimate(middle, low, high) if low and high else Estimate(middle, None, None)
        if self.control_seconds:
            return Estimate(median(c / f for c, f in zip(self.control_seconds, self.seconds, strict=True)), None, None)
        return None

    def value(self, key: str) -> float | None:
        """A recorded number of ``extra_info``."""
        return number(self.info.get(key))

    @property
    def parity(self) -> Mapping[str, Any]:
        """The numerical check, as recorded."""
        return mapping(self.info.get("parity"))


class RunView(NamedTuple):
    """One run. ``plain`` is one of pytest-benchmark without the suite's keys."""

    path: Path
    name: str
    commit: str | None
    branch: str | None
    dirty: bool
    datetime: str
    machine_info: Mapping[str, Any]
    cases: tuple[CaseView, ...]
    plain: bool

    def describe(self) -> str:
        """``commit 28b7c31fc5 (main), 2026-11-24 10:42``; and the clock, where times are not of the wall's."""
        parts = []
        if self.commit:
            branch = f" ({self.branch})" if self.branch else ""
            parts.append(f"commit {self.commit[:10]}{branch}{' with uncommitted changes' if self.dirty else ''}")
        if self.datetime:
            parts.append(self.datetime[:16].replace("T", " "))
        shown = parts or [self.name]
        timers = sorted({case.timer for case in self.cases} - {WALL_CLOCK})
        return clean(", ".join([*shown, *(f"timed by {timer}, not in wall time" for timer in timers)]))


def view_run(path: Path, name: str, known: Mapping[str, Mapping[str, Any]]) -> RunView:
    """Read the run at ``path``.

    Of a case with nothing but an outcome the JSON has no parameters; ``known`` has them by case id.

    Raises:
        BadInputError: it is no run, or it was cut short; one line that names it.
    """
    document = parse_document(read_bytes(path), path)
    commit = mapping(document.get("commit_info"))
    try:
        cases = take_apart(document, strict=False)
    except Unreadable as problem:
        raise BadInputError(f"{clean(path)}: {clean(problem)}") from None
    return RunView(
        path=path,
        name=name,
        commit=_text(commit.get("id")),
        branch=_text(commit.get("branch")),
        dirty=commit.get("dirty") is True,
        datetime=in_utc(_text(document.get("datetime")) or ""),
        machine_info=mapping(document.get("machine_info")),
        cases=tuple(CaseView(case, known) for case in cases),
        plain="perf_cases" not in document,
    )


def number(value: object) -> float | None:
    """A finite number, or ``None`` in place of anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def _text(value: object) -> str | None:
    """A line of printable text."""
    if not isinstance(value, str):
        return None
    return value if value.isprintable() and len(value) <= LONGEST else clean(value)


def _times(values: object) -> tuple[float, ...]:
    """Positive seconds; none at all where one of them is no time."""
    if not isinstance(values, list) or not values or not {*map(type, values)} <= {int, float}:
        return ()
    try:
        usable = min(values) > 0 and math.isfinite(sum(values))  # a sum with NaN or infinity in it is one
    except OverflowError:
        return ()
    return tuple(values) if usable else ()
