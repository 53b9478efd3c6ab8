"""Each case over commits: corrected by the control where there is one, absolute, memory and counters."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from perf_tests.common.units import MEGABYTE
from perf_tests.report import charts
from perf_tests.report.change_points import LEAST_RUNS, ChangePoint
from perf_tests.report.commits import commit_url
from perf_tests.report.content import Cell, Chart, Choice, Columns, Section, Table, compact, number_cell, text_cell
from perf_tests.report.history import HistoryRun, Series, make_series
from perf_tests.report.numbers import show_change, show_count, show_megabytes, show_ratio, show_seconds
from perf_tests.report.subject import Subject

DIGITS = 4
SHORT = 7
CASE_COLUMNS = (
    "case",
    "runs",
    "speed-up, newest",
    "since the last change",
    "changes",
    "last change",
    "time per round, newest",
    "peak memory, newest, MB",
    "memory since the first run",
    "ATen ops, newest",
    "ATen ops since the first run",
    "FLOPs, newest",
    "FLOPs since the first run",
)


def build(subject: Subject) -> Section | None:
    """All cases of the machine's runs; nothing where there is but one run."""
    runs = subject.machine.runs
    if len(runs) < 2:
        return None
    series = make_series(runs)
    # Cases that the gate corrects first: their history is the code's.
    series.sort(key=lambda one: not one.corrected)
    labels = _labels(series)
    choice = Choice(
        "case",
        {label: _columns(one) for label, one in zip(labels, series, strict=True)},
        _run_columns(runs, subject.commit_template),
    )
    text = (
        "Runs of this machine, oldest first. The speed-up is corrected by the control that ran beside each round, so"
        " that the machine's drift does not show as a change; other figures are absolute, and times are bound to the"
        " machine."
    )
    notes = [
        f"Change points: PELT on the logarithm of the speed-up, looked for from {2 * LEAST_RUNS} runs on;"
        " only cases with a control have them."
    ]
    tables = [_cases(labels, series, runs, subject), _changes(labels, series, runs, subject)]
    return Section(
        "history",
        "History",
        text,
        choice=choice,
        charts=[
            _speedups(runs),
            _times(runs),
            _exact(runs, "memory", "Peak memory", ", MB", ",.1f"),
            _exact(runs, "ops", "ATen ops", " of a round", ",.0f"),
            _exact(runs, "flops", "FLOPs", " of a round", ",.0f"),
        ],
        tables=[table for table in tables if table.rows],
        notes=notes,
    )


def _labels(series: Sequence[Series]) -> list[str]:
    """The case ids; with the definition where one id meant different work over time."""
    ids = [one.case_id for one in series]
    return [one.case_id if ids.count(one.case_id) == 1 else f"{one.case_id} ({one.definition})" for one in series]


def _columns(one: Series) -> Columns:
    count = len(one.points)
    contiguous = one.indices == tuple(range(count))
    levels: list[float | None] = [None] * count
    changes: list[str | None] = [None] * count
    bounds = [0, *(change.place for change in one.changes), count]
    for start, end, level in zip(bounds, bounds[1:], _levels(one.changes), strict=False):
        levels[start:end] = [level] * (end - start)
    for change in one.changes:
        changes[change.place] = show_change(change.change)
    columns: dict[str, Any] = {
        "seconds": [point.seconds for point in one.points],
        "control": [point.control_seconds for point in one.points],
        "speedup": [point.speedup for point in one.points],
        "low": [point.low for point in one.points],
        "high": [point.high for point in one.points],
        "memory": [None if point.memory_bytes is None else point.memory_bytes / MEGABYTE for point in one.points],
        "ops": [point.aten_ops for point in one.points],
        "flops": [point.flops for point in one.points],
        "level": levels,
        "change": changes,
    }
    small = compact(columns, DIGITS)
    return small if contiguous else {**small, "run": [*one.indices]}


def _levels(changes: Sequence[ChangePoint]) -> list[float]:
    return [changes[0].before, *(change.after for change in changes)] if changes else []


def _run_columns(runs: Sequence[HistoryRun], template: str | None) -> Columns:
    return {
        "index": [*range(len(runs))],
        "commit": [_short(run) for run in runs],
        "when": [run.datetime[:16].replace("T", " ") for run in runs],
        "url": [commit_url(template, run.commit) for run in runs],
        "baseline": [run.baseline for run in runs],
    }


def _short(run: HistoryRun) -> str:
    return f"{run.commit[:SHORT]}{'+' if run.dirty else ''}" if run.commit else run.name[:SHORT]


def _cases(labels: Sequence[str], series: Sequence[Series], runs: Sequence[HistoryRun], subject: Subject) -> Table:
    rows = []
    for label, one in zip(labels, series, strict=True):
        # A run that was counted and not timed has no times, and one that was timed may lack others.
        speedup, seconds = (_recorded(one, key)[-1] for key in ("speedup", "seconds"))
        last = one.changes[-1] if one.changes else None
        rows.append(
            [
                Cell(label, label, choose=label),
                number_cell(str(len(one.points)), len(one.points)),
                number_cell(show_ratio(speedup), speedup),
                _change_cell(last),
                number_cell(str(len(one.changes)) if one.corrected else "", len(one.changes)),
                _commit_cell(runs[one.indices[last.place]], subject) if last else Cell(""),
                number_cell(show_seconds(seconds), seconds),
                *_exact_cells(one, "memory_bytes", show_megabytes),
                *_exact_cells(one, "aten_ops", show_count),
                *_exact_cells(one, "flops", show_count),
            ]
        )
    note = "Choose a case to see it above."
    return Table("Cases over the runs", CASE_COLUMNS, rows, frozenset({1, 2, 3, 4, *range(6, len(CASE_COLUMNS))}), note)


def _recorded(one: Series, key: str) -> list[float | None]:
    """A case's figure in the runs that have it, oldest first; a single ``None`` where none has."""
    return [value for point in one.points if (value := getattr(point, key)) is not None] or [None]


def _exact_cells(one: Series, key: str, show: Callable[[float | None], str]) -> list[Cell]:
    """An exact figure in the newest run that has it, and what it has grown by."""
    values = _recorded(one, key)
    first, newest = values[0], values[-1]
    grown = newest / first - 1 if newest and first else None
    mark = "" if not grown else "bad" if grown > 0 else "good"
    return [number_cell(show(newest), newest), number_cell(show_change(grown), grown, mark)]


def _changes(labels: Sequence[str], series: Sequence[Series], runs: Sequence[HistoryRun], subject: Subject) -> Table:
    found = [
        (runs[one.indices[change.place]], label, change)
        for label, one in zip(labels, series, strict=True)
        for change in one.changes
    ]
    found.sort(key=lambda entry: (entry[0].datetime, -abs(entry[2].change)), reverse=True)
    rows = [
        [
            text_cell(run.datetime[:16].replace("T", " ")),
            _commit_cell(run, subject),
            Cell(label, label, choose=label),
            number_cell(show_ratio(change.before), change.before),
            number_cell(show_ratio(change.after), change.after),
            _change_cell(change),
        ]
        for run, label, change in found
    ]
    columns = ("first run", "commit", "case", "speed-up before", "after", "change")
    return Table("Change points, newest first", columns, rows, frozenset({3, 4, 5}))


def _change_cell(change: ChangePoint | None) -> Cell:
    if change is None:
        return Cell("")
    return number_cell(show_change(change.change), change.change, "good" if change.change > 0 else "bad")


def _commit_cell(run: HistoryRun, subject: Subject) -> Cell:
    return Cell(_short(run), run.commit, commit_url(subject.commit_template, run.commit))


def _run_axis(runs: Sequence[HistoryRun]) -> Any:
    """Runs by their place, labelled with their commits."""
    labels = json.dumps([_short(run) for run in runs])
    axis = alt.Axis(labelExpr=f"{labels}[datum.value]", tickMinStep=1, labelOverlap="greedy", grid=False)
    return alt.X("index:Q", title="run, oldest first, by commit", axis=axis, scale=alt.Scale(nice=False, padding=8))


def _point_size(runs: Sequence[HistoryRun]) -> int:
    """In square pixels: the points of many runs must not run together."""
    return 28 if len(runs) <= 200 else 8


def _tips() -> list[Any]:
    return [charts.tip("commit:N", "commit"), charts.tip("when:N", "when"), charts.tip("baseline:N", "baseline")]


def _speedups(runs: Sequence[HistoryRun]) -> Chart:
    title = "speed-up (control / flash)"
    scale = alt.Scale(zero=False)
    y = alt.Y("speedup:Q", title=title, scale=scale)
    base = charts.chart().transform_filter("isValid(datum.speedup)").encode(x=_run_axis(runs))
    band = base.mark_area(opacity=0.2, color="var(--flash)").encode(
        y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q"
    )
    line = base.mark_line(color="var(--flash)", strokeWidth=1.5).encode(y=y)
    level = base.mark_line(color="var(--ink)", strokeWidth=1.5, strokeDash=[6, 3], interpolate="step-after").encode(
        y=alt.Y("level:Q", title=title, scale=scale)
    )
    changed = base.transform_filter("isValid(datum.change)")
    changes = changed.mark_rule(color="var(--bad)", strokeWidth=1.5).encode(
        tooltip=[charts.tip("change:N", "change of the speed-up"), *_tips()]
    )
    names = changed.mark_text(
        color="var(--bad)", fontSize=11, fontWeight="bold", dx=4, align="left", baseline="top"
    ).encode(y=alt.value(2), text="change:N")
    interval = [charts.tip("low:Q", "95 % from", ".3f"), charts.tip("high:Q", "to", ".3f")]
    points = base.mark_point(filled=True, size=_point_size(runs), opacity=1, color="var(--flash)").encode(
        y=y, href="url:N", tooltip=[charts.tip("speedup:Q", "speed-up", ".3f"), *interval, *_tips()]
    )
    promoted = base.transform_filter("isValid(datum.baseline)")
    marks = promoted.mark_point(
        filled=False, size=130, strokeWidth=2, opacity=1, shape="diamond", color="var(--eager)"
    ).encode(y=y, tooltip=[charts.tip("baseline:N", "promoted as"), *_tips()])
    texts = promoted.mark_text(dy=14, fontSize=11, color="var(--muted)").encode(y=y, text="baseline:N")
    spec = charts.finish(
        band,
        line,
        points,
        level,
        changes,
        names,
        marks,
        texts,
        height=260,
        description="Control-corrected speed-up over the runs, with change points and promoted baselines.",
    )
    caption = (
        "Band: 95 % interval. Vertical lines: change points; dashed: the level between. Diamonds: promoted baselines."
    )
    return Chart("Speed-up over commits, control-corrected", spec, None, caption, wide=True, needs="speedup")


def _times(runs: Sequence[HistoryRun]) -> Chart:
    names = ["this case", "its control (original)"]
    base = (
        charts.chart()
        .transform_fold(["seconds", "control"], as_=["key", "value"])
        .transform_filter("isValid(datum.value)")
        .transform_calculate(who=f"datum.key === 'seconds' ? '{names[0]}' : '{names[1]}'")
        .encode(
            x=_run_axis(runs),
            y=alt.Y("value:Q", title="median round, s (machine-bound)", scale=alt.Scale(zero=False)),
            color=alt.Color(
                "who:N",
                scale=alt.Scale(domain=names, range=["var(--flash)", "var(--original)"]),
                legend=alt.Legend(title=None),
            ),
        )
    )
    tips = [charts.tip("who:N", "what"), charts.tip("value:Q", "median round, s", ".4~g"), *_tips()]
    points = base.mark_point(filled=True, size=_point_size(runs), opacity=1).encode(href="url:N", tooltip=tips)
    spec = charts.finish(
        base.mark_line(strokeWidth=1.2),
        points,
        height=200,
        description="Absolute time per round over the runs.",
    )
    caption = "Not corrected: the machine's drift is in it."
    return Chart("Absolute time over commits, machine-bound", spec, None, caption, needs="seconds")


def _exact(runs: Sequence[HistoryRun], column: str, name: str, unit: str, form: str) -> Chart:
    """What repeats to the last digit: a step is the code's."""
    y = alt.Y(f"{column}:Q", title=f"{name}{unit}", scale=alt.Scale(zero=False))
    base = charts.chart().transform_filter(f"isValid(datum.{column})").encode(x=_run_axis(runs), y=y)
    points = base.mark_point(filled=True, size=_point_size(runs), opacity=1, color="var(--flash)").encode(
        href="url:N", tooltip=[charts.tip(f"{column}:Q", f"{name}{unit}", form), *_tips()]
    )
    line = base.mark_line(interpolate="step-after", color="var(--flash)", strokeWidth=1.2)
    spec = charts.finish(line, points, height=200, description=f"{name} over the runs.")
    return Chart(f"{name} over commits", spec, None, "Exact.", needs=column)
