"""The machine, its libraries, and the runs that were read."""

from perf_tests.report.commits import commit_url
from perf_tests.report.content import Cell, Section, Table, number_cell, text_cell
from perf_tests.report.machine import machine_rows
from perf_tests.report.subject import Subject
from perf_tests.runs.device_state import HEADINGS, describe_state

# Of more runs, the newest are listed.
MOST_LISTED = 50


def build(subject: Subject) -> Section:
    """What was measured where, with what."""
    facts = [[text_cell(key), text_cell(value)] for key, value in machine_rows(subject.run.machine_info)]
    tables = [Table("Machine and libraries", ("what", "value"), facts), _runs(subject)]
    tables += [table for table in (_states(subject), _backends(subject)) if table.rows]
    return Section("machine", "The machine", tables=tables)


def _runs(subject: Subject) -> Table:
    runs = subject.machine.runs
    rows = []
    for run in reversed(runs[-MOST_LISTED:]):
        commit = f"{run.commit[:10] if run.commit else ''}{' + uncommitted' if run.dirty else ''}"
        rows.append(
            [
                text_cell(run.name),
                Cell(commit, run.commit, commit_url(subject.commit_template, run.commit)),
                text_cell(run.datetime[:16].replace("T", " ")),
                number_cell(str(len(run.points)), len(run.points)),
                text_cell(run.baseline or ""),
            ]
        )
    note = f"The newest {MOST_LISTED} of {len(runs)}." if len(runs) > MOST_LISTED else ""
    return Table("Runs", ("file", "commit", "when", "cases", "baseline"), rows, frozenset({3}), note)


def _states(subject: Subject) -> Table:
    """What the machine was like beside the rounds of each case that was timed."""
    shown = {case.id: describe_state(case.info.get("device_state")) for case in subject.run.cases if case.measured}
    headings = [heading for heading in HEADINGS if any(heading in state for state in shown.values())]
    rows = [
        [text_cell(name), *(number_cell(*state.get(heading, ("", None))) for heading in headings)]
        for name, state in shown.items()
        if state
    ]
    columns, numeric = ("case", *headings), frozenset(range(1, len(headings) + 1))
    return Table("Beside the rounds", columns, rows, numeric, "Least / median / most.")


def _backends(subject: Subject) -> Table:
    rows = []
    for row in subject.rows:
        for name in subject.implementations:
            case = row.case(name)
            backends = case.info.get("attention_backend") if case else None
            if isinstance(backends, dict):
                shown = ", ".join(f"{call}: {kernel}" for call, kernel in backends.items())
                rows.append([text_cell(row.label), text_cell(name), text_cell(shown)])
    return Table("Which kernel served which call", ("cell", "implementation", "kernels"), rows)
