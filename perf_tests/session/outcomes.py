"""Each selected case's outcome, on disk as it ends, and in the JSON as ``perf_cases``.

pytest-benchmark leaves out a case that failed, and saves nothing at all when all of them did. Here a case
that was selected is always accounted for, and nothing of one that failed passes for a measurement. A run that was
killed or interrupted leaves its journal, and ``--perf-resume`` goes on from it (``resume.py``).

A case that was counted and not timed (``--perf-counters-only``) has its figures in its entry: pytest-benchmark knows no
benchmark without rounds, and a made-up round would be a lie. Its own commands then see a run without benchmarks.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from perf_tests.common.text import first_line
from perf_tests.machine.out_of_memory import describe_out_of_memory
from perf_tests.machine.watch import lost_device
from perf_tests.matrix.options import PLAN
from perf_tests.runs.journal import Journal, complete_run, dumps

from .other_plugins import why_idle

JOURNAL = pytest.StashKey[Journal]()
# What went wrong with saving the run.
PROBLEMS = pytest.StashKey[list[str]]()
# Of an item: the record of a case that was counted without timing.
COUNTED = pytest.StashKey[dict[str, Any]]()


def storage_folder(config: pytest.Config) -> Path:
    """Where runs are saved, or would be if these were files."""
    storage = config.getoption("benchmark_storage")
    folder = Path(storage.removeprefix("file://")) if "elasticsearch+" not in storage else Path(".benchmarks")
    return config.invocation_params.dir / folder


def new_journal_path(folder: Path) -> Path:
    """A file of this session's own."""
    stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime())
    return folder / f"journal_{stamp}_{os.getpid()}.jsonl"


def note_phase(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Note a phase's outcome and what was counted; take a failed case's rounds away from pytest-benchmark."""
    item.config.stash[JOURNAL].note(item.name, report.outcome, _reason(report, call))
    benchmark = (getattr(item, "funcargs", None) or {}).get("benchmark")
    if report.failed and benchmark is not None:
        benchmark.has_error = True  # not saved
        if benchmark.stats is not None:
            benchmark.stats.stats.data.clear()  # not shown
    elif report.when == "call" and report.passed and item.config.stash[PLAN].counters_only:
        item.stash[COUNTED] = {name: getattr(benchmark, name) for name in ("group", "params", "extra_info")}


def refuse_second_time(item: pytest.Item) -> None:
    """Fail a case that another plugin runs again (``--reruns``): one that failed has failed."""
    if item.config.stash[JOURNAL].has_begun(item.name):
        pytest.fail("a case runs once; leave out the plugin that runs it again (--reruns, --retries)", pytrace=False)


@contextmanager
def recorded(item: pytest.Item) -> Iterator[None]:
    """Write that the case begins, and its entry when all of its phases are over."""
    journal = item.config.stash[JOURNAL]
    journal.begin(item.name)
    try:
        yield
    except BaseException:
        journal.leave(item.name)
        raise
    measurement = _measurement(item)
    if measurement is None and why_idle(item.config) is None:  # one that failed or was skipped stays so
        journal.note(item.name, "failed", "nothing was measured in this process; leave out what runs cases elsewhere")
    entry = journal.close(item.name, measurement)
    if journal.problem is not None:
        item.session.shouldstop = journal.problem  # what comes now could be lost
    elif entry.outcome == "failed" and (lost := lost_device(item.config.stash[PLAN].device)):
        item.session.shouldstop = f"the GPU takes no more work of this process: {lost}"  # the next one could go on


def complete(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add ``perf_cases`` and the cases of earlier sessions to the run's JSON."""
    journal = config.stash[JOURNAL]
    complete_run(output_json, journal.selected, journal.entries, journal.sessions)


def _measurement(item: pytest.Item) -> dict[str, Any] | None:
    """pytest-benchmark's record of the case, or what was counted of it without timing, if there is either."""
    benchmarks: Any = item.config._benchmarksession  # type: ignore[attr-defined]  # pytest-benchmark's, on purpose
    for bench in reversed(benchmarks.benchmarks):
        if bench.fullname == item.nodeid and bench and not bench.has_error:
            record: dict[str, Any] = json.loads(dumps(bench.as_dict(include_data=True)))
            return record
    counted: dict[str, Any] | None = json.loads(dumps(item.stash.get(COUNTED, None)))
    return counted


def _reason(report: pytest.TestReport, call: pytest.CallInfo[None]) -> str | None:
    if report.passed:
        return None
    if call.excinfo is None:
        return str(report.longrepr)
    if report.skipped:
        return str(getattr(call.excinfo.value, "msg", call.excinfo.value))
    phase = "" if report.when == "call" else f"in {report.when}: "
    return phase + (describe_out_of_memory(call.excinfo.value) or first_line(call.excinfo.value))
