"""What people see: a header, a line per case as it ends, a table with memory beside time."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from perf_tests.common.errors import BadInputError
from perf_tests.common.git import why_no_commit
from perf_tests.common.text import count_of
from perf_tests.common.units import format_duration
from perf_tests.machine.describe import describe_cpu, find_xformers, version_of
from perf_tests.matrix.cases import GENERATE
from perf_tests.matrix.components import ACCURACY, COMPONENTS, function_of
from perf_tests.matrix.estimate import TYPICAL_CPU, Speed, forecast
from perf_tests.matrix.options import PLAN, make_plan_of
from perf_tests.matrix.plan import SYNTHETIC, Plan
from perf_tests.runs.device_state import Cores
from perf_tests.runs.journal import Entry, Journal
from perf_tests.subjects.audio import Speech

from .outcomes import JOURNAL
from .progress import Progress
from .speech import SPEECH
from .table import describe_result, render_counted_table, render_table

PROGRESS = pytest.StashKey[Progress]()
START = pytest.StashKey[float]()
# pytest-benchmark's words where there is no repository, and where git does not work in it.
NO_COMMIT = ("unversioned", "unknown", None)
# What each case is expected to take, by its item's name.
FORECAST = pytest.StashKey[dict[str, float]]()


def begin_report(config: pytest.Config, cases: Sequence[pytest.Item], *, alone: bool) -> list[str]:
    """The header: where and with what the cases run, how many they are and about how long they take.

    ``alone`` is whether nothing else runs.
    """
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if alone and reporter is not None and config.get_verbosity() == 0:
        reporter.showfspath = False  # each case has a line of its own: no file name before it
    plan = config.stash[PLAN]
    expected = config.stash[FORECAST] = forecast(plan, _speed(plan))
    seconds = sum(expected.get(item.name, 0.0) for item in cases)
    lines = header(plan, config.stash[SPEECH], len(cases), seconds)
    if config.stash[JOURNAL].context.commit_info.get("id") in NO_COMMIT:
        lines.append(f"perf: commit unknown: {why_no_commit(config.rootpath)}")
    return lines


def _speed(plan: Plan) -> Speed:
    """How fast the CPU is that the cases run on; of a GPU there is a table."""
    if plan.on_cuda:
        return TYPICAL_CPU
    import torch

    from perf_tests.machine.limits import look_at_speed

    return look_at_speed(getattr(torch, plan.dtype))


def header(plan: Plan, speech: Speech, count: int, seconds: float) -> list[str]:
    """The header's lines, for ``count`` of the plan's cases, which may take so many seconds."""
    where = describe_cpu() if not plan.on_cuda else "GPU"
    versions = ", ".join(f"{name} {version_of(name) or 'missing'}" for name in ("torch", "transformers"))
    audio = f"{speech.name} audio" if speech.name == SYNTHETIC else f"audio of {speech.name}"
    if speech.fallback_reason:
        audio += f" ({speech.fallback_reason})"
    counting = ", counted and not timed" if plan.counters_only else ""
    depth = ", full-depth rows only" if plan.weights == "pretrained" else ""
    xformers = find_xformers(plan.device)
    cases = f"{count_of(count, 'case')}{counting}"
    return [
        f"perf: on {plan.device} ({where}) in {plan.dtype}, {plan.weights} weights{depth}, {audio}",
        f"perf: {versions}, {xformers.describe()}",
        *([f"perf: {xformers.problem}"] if xformers.problem else []),
        f"perf: preset {plan.preset} ({plan.preset_reason}): {cases}, about {format_duration(seconds)}",
    ]


@contextmanager
def shown(item: pytest.Item) -> Iterator[None]:
    """Around a case and its journal entry: the progress, and the case's own line."""
    config = item.config
    progress, journal = config.stash[PROGRESS], config.stash[JOURNAL]
    start = config.stash.setdefault(START, time.monotonic())
    progress.start(_case_id(item.name))
    yield
    progress.finish()
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and config.get_verbosity() >= 0:
        entry = journal.entries[item.name]
        done, total, end = len(journal.entries), len(journal.selected), ""
        if done < total:
            left = _left(config.stash[FORECAST], journal, time.monotonic() - start)
            end = f", {format_duration(left)} left"
        width = len(str(total))
        reporter.ensure_newline()
        reporter.write_line(
            f"[{done:{width}}/{total}] {_case_id(item.name)}: {describe_result(entry)}{end}",
            red=entry.outcome == "failed",
            yellow=entry.outcome == "skipped",
        )
        reporter.flush()  # a log that is a pipe would otherwise show nothing for minutes


def _left(expected: dict[str, float], journal: Journal, spent: float) -> float:
    """Seconds for the cases to come, if they take as much more or less than expected as this session's have."""
    session = len(journal.earlier)
    done = sum(expected[name] for name, entry in journal.entries.items() if entry.session == session)
    return spent / done * sum(expected[name] for name in journal.selected if name not in journal.entries)


def status_of(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config) -> tuple[str, str, str] | None:
    """No letter for a case: it has a line of its own."""
    journal = config.stash.get(JOURNAL, None)
    if journal is None or config.get_verbosity() > 0 or not isinstance(report, pytest.TestReport):
        return None
    if report.nodeid.rpartition("::")[2] not in journal.selected:
        return None
    if report.passed:
        return ("passed" if report.when == "call" else "", "", "")
    category = "error" if report.failed and report.when != "call" else report.outcome
    return category, "", ""


def show_table(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of all cases, after pytest-benchmark's."""
    journal = config.stash[JOURNAL]
    entries: list[Entry] = list(journal.entries.values())
    if entries:
        terminalreporter.section("performance")
        plan, colour = config.stash[PLAN], terminalreporter.hasmarkup
        if plan.counters_only:
            text = render_counted_table(entries, colour=colour)
        else:
            text = render_table(entries, Cores.of(journal.context.machine_info, plan.device), colour=colour)
        terminalreporter.write(text)


def _case_id(name: str) -> str:
    return name.partition("[")[2].removesuffix("]") or name


def show_groups(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What else there is to run, where cases were but collected."""
    if config.get_verbosity() >= -1:
        for line in describe_groups(config):
            terminalreporter.write_line(line)


def describe_groups(config: pytest.Config) -> Iterator[str]:
    """A line for each test that the chosen preset has cases of, also where another option runs them."""
    chosen = config.stash[PLAN]
    yield f"perf: cases of preset {chosen.preset} ({chosen.preset_reason})"
    for matrix in (GENERATE, COMPONENTS, ACCURACY):
        try:
            plan = make_plan_of(config, components=matrix is COMPONENTS, accuracy=matrix is ACCURACY)
        except BadInputError:  # the selection names what this group does not have
            continue
        how = f"with {matrix.option}" if matrix.option else f"without {COMPONENTS.option} and {ACCURACY.option}"
        if plan.cases == chosen.cases:
            how = "listed above"
        for name, count in Counter(map(function_of, plan.cases)).items():
            yield f"{count:6} {name:<18} {how}"
