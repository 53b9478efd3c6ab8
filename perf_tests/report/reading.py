"""A saved run as a report sees it: whatever is there is shown, and nothing has to be.

The gate's reader (``perf_tests.runs.saved``) refuses what it cannot judge. A report also shows cases without
rounds, without a control or of somebody else's benchmarks, so each value here is read on demand and is ``None`` where
the JSON has none, or one that is no number.
"""

import math
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from perf_tests.common.errors import BadInputError
from perf_tests.common.intervals import Estimate
from perf_tests.common.text import LONGEST, clean
from perf_tests.matrix import cases
from perf_tests.runs.records import WALL_CLOCK, Unreadable, timer_of
from perf_tests.runs.saved import check_format, check_version, parse_document, read_bytes

GENERATE = "test_generate"


class CaseView:
    """One case of a run, measured or not. Times in seconds, memory in bytes."""

    def __init__(self, case_id: str, outcome: str, reason: str | None, bench: Mapping[str, Any]) -> None:
        self.id = _text(case_id) or ""
        self.outcome = _text(outcome) or ""
        self.reason = _text(reason)
        self.bench = bench
        self.info = mapping(bench.get("extra_info"))
        params = mapping(bench.get("params")) or _known_parameters(case_id)
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
    def counted(self) -> bool:
        """Whether it was counted without timing, on purpose."""
        return self.measured and "stats" not in self.bench

    @property
    def timer(self) -> str:
        """The clock of its rounds."""
        return clean(timer_of(self.bench))

    @property
    def is_generate(self) -> bool:
        """Whether it is a case of the two tables: a cell done by one implementation."""
        cell = (self.checkpoint, self.decoder_layers, self.setting, self.implementation)
        return self.test == GENERATE and None not in cell

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
        """The median round."""
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


def view_run(path: Path, name: str) -> RunView:
    """Read the run at ``path``.

    Raises:
        BadInputError: it is no run, or it was cut short; one line that names it.
    """
    document = _parse(read_bytes(path), path)
    commit = mapping(document.get("commit_info"))
    try:
        check_format(document)
        measured = dict(_named(document["benchmarks"]))
    except Unreadable as problem:
        raise BadInputError(f"{clean(path)}: {clean(problem)}") from None
    return RunView(
        path=path,
        name=name,
        commit=_text(commit.get("id")),
        branch=_text(commit.get("branch")),
        dirty=commit.get("dirty") is True,
        datetime=_text(document.get("datetime")) or "",
        machine_info=mapping(document.get("machine_info")),
        cases=tuple(_view_cases(measured, document.get("perf_cases"))),
        plain="perf_cases" not in document,
    )


def _parse(content: bytes, path: Path) -> Mapping[str, Any]:
    """Read fast what is plain JSON; the rest (NaN, byte order marks, broken files) as the gate does."""
    import orjson

    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        document = None
    whole = isinstance(document, dict) and isinstance(document.get("benchmarks"), list)
    return document if whole else parse_document(content, path)


def _named(benchmarks: Iterable[object]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for bench in benchmarks:
        if isinstance(bench, Mapping) and isinstance(bench.get("name"), str):
            info = mapping(bench.get("extra_info"))
            if "schema_version" in info:
                check_version(info["schema_version"], bench["name"])
            yield bench["name"], bench


def _view_cases(measured: Mapping[str, Mapping[str, Any]], outcomes: object) -> Iterable[CaseView]:
    """The selected cases in their order, then whatever else was measured."""
    listed = set()
    for entry in outcomes if isinstance(outcomes, list) else []:
        name, outcome = mapping(entry).get("id"), mapping(entry).get("outcome")
        if isinstance(name, str) and isinstance(outcome, str) and name not in listed:
            listed.add(name)
            counted = entry if "extra_info" in entry else {}
            yield CaseView(name, outcome, entry.get("reason"), measured.get(name, counted))
    for name, bench in measured.items():
        if name not in listed:
            yield CaseView(name, "passed", None, bench)


def mapping(value: object) -> Mapping[str, Any]:
    """A JSON object, or an empty one in place of anything else."""
    return value if isinstance(value, Mapping) else {}


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


def _known_parameters(case_id: str) -> Mapping[str, Any]:
    """The parameters of a case of which nothing but the outcome is known: looked up in the matrix, never parsed."""
    return _matrix().get(case_id, {})


@cache
def _matrix() -> Mapping[str, Mapping[str, Any]]:
    depths = {(cell.checkpoint, cell.decoder_layers) for preset in cases.PRESETS.values() for cell in preset.cells}
    known = [
        cases.Case(*depth, setting, implementation)
        for depth in depths
        for setting in cases.SETTINGS
        for implementation in cases.IMPLEMENTATIONS
    ]
    return {f"{GENERATE}[{case.id}]": case._asdict() for case in known}
