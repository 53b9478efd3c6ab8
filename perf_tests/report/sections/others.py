"""What is no cell of the tables: component cases, and benchmarks of other suites, as far as they go."""

from collections.abc import Sequence

from perf_tests.report.content import Cell, Section, Table, number_cell, text_cell
from perf_tests.report.numbers import seldom_recorded, show_count, show_megabytes, show_seconds, show_speedup
from perf_tests.report.rows import MEMORY, is_generate
from perf_tests.report.subject import Subject
from perf_tests.runs.records import COUNTERS
from perf_tests.runs.views import CaseView

COLUMNS = ("case", "rounds", "median round", "speed-up [95 %]", "peak memory, MB", "ATen ops", "FLOPs")


def build(subject: Subject) -> Section | None:
    """A table for each test function."""
    by_test: dict[str, list[CaseView]] = {}
    for case in subject.run.cases:
        if case.measured and not is_generate(case):
            by_test.setdefault(case.test, []).append(case)
    if not by_test:
        return None
    tables = [_table(test, cases) for test, cases in by_test.items()]
    return Section("others", "Other cases", "Cases that are no cell of the tables.", tables=tables)


def _table(test: str, cases: Sequence[CaseView]) -> Table:
    more = seldom_recorded(cases)
    columns = (*COLUMNS, *(heading for heading, _, _ in more))
    rows = [
        [*_row(case), *(number_cell(show(case.value(key)), case.value(key)) for _, key, show in more)] for case in cases
    ]
    return Table(test, columns, rows, frozenset(range(1, len(columns))))


def _row(case: CaseView) -> list[Cell]:
    seconds, speedup, memory = case.median_seconds, case.speedup, case.value(MEMORY)
    return [
        text_cell(case.id),
        number_cell(show_count(case.rounds), case.rounds),
        number_cell(show_seconds(seconds), seconds),
        number_cell(show_speedup(speedup), speedup.median if speedup else None),
        number_cell(show_megabytes(memory), memory),
        *(number_cell(show_count(case.value(key)), case.value(key)) for key in COUNTERS[:2]),
    ]
