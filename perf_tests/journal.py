"""pytest plugin: each selected case's outcome, on disk as it ends, and in the JSON as ``perf_cases``.

pytest-benchmark leaves out a case that failed, and saves nothing at all when all of them did. Here a case
that was selected is always accounted for, and nothing of one that failed passes for a measurement.
"""

import json
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pytest_benchmark.utils import safe_dumps

from .audio import first_line
from .options import is_perf_item

JOURNAL_VERSION = 1
NOT_RUN = "not run: the session ended before it"


class Entry(NamedTuple):
    """How a case ended; ``benchmark`` is pytest-benchmark's record with its raw rounds, if it passed."""

    id: str
    outcome: str
    reason: str | None
    benchmark: dict[str, Any] | None


class Journal:
    """The outcomes so far, in memory and in a file of JSON lines: a header, then an entry per ended case."""

    def __init__(self, path: Path, selected: list[str]) -> None:
        self.path = path
        self.selected = selected
        self.entries: dict[str, Entry] = {}
        self._reports: dict[str, tuple[str, str | None]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._append({"journal": JOURNAL_VERSION, "started": time.time(), "selected": selected}, mode="w")

    def note(self, name: str, outcome: str, reason: str | None) -> None:
        """Note the outcome of one phase of a case; the first phase that did not pass decides."""
        if self._reports.get(name, ("passed", None))[0] == "passed":
            self._reports[name] = outcome, reason

    def close(self, name: str, benchmark: dict[str, Any] | None) -> Entry:
        """A case has ended: write its entry to the disk, for good."""
        outcome, reason = self._reports.get(name, ("skipped", NOT_RUN))
        entry = Entry(name, outcome, reason, benchmark if outcome == "passed" else None)
        self.entries[name] = entry
        self._append(entry._asdict())
        return entry

    def perf_cases(self) -> list[dict[str, Any]]:
        """The run's ``perf_cases``: one entry for every selected case, in the order of collection."""
        not_run = Entry("", "skipped", NOT_RUN, None)
        entries = (self.entries.get(name, not_run)._replace(id=name) for name in self.selected)
        return [{"id": entry.id, "outcome": entry.outcome, "reason": entry.reason} for entry in entries]

    def _append(self, line: dict[str, Any], mode: str = "a") -> None:
        with self.path.open(mode, encoding="utf-8") as file:
            file.write(_dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


JOURNAL = pytest.StashKey[Journal]()
# Of an item: the record of a case that was counted without timing.
COUNTED = pytest.StashKey[dict[str, Any]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Open the journal when the cases to come are known."""
    names = [item.name for item in session.items if is_perf_item(item)]
    if names and not session.config.option.collectonly:
        path = journal_path(session.config)
        try:
            session.config.stash[JOURNAL] = Journal(path, names)
        except OSError as error:
            raise pytest.UsageError(f"--benchmark-storage: cannot write {path}: {error.strerror}") from None


def journal_path(config: pytest.Config) -> Path:
    """A file of this session's own, beside the saved runs where these are files."""
    storage = config.getoption("benchmark_storage")
    folder = Path(storage.removeprefix("file://")) if "elasticsearch+" not in storage else Path(".benchmarks")
    stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime())
    return config.invocation_params.dir / folder / f"journal_{stamp}_{os.getpid()}.jsonl"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note each phase's outcome; take a failed case's rounds away from pytest-benchmark."""
    report = yield
    if is_perf_item(item) and JOURNAL in item.config.stash:
        item.config.stash[JOURNAL].note(item.name, report.outcome, _reason(report, call))
        benchmark = (getattr(item, "funcargs", None) or {}).get("benchmark")
        if report.failed and benchmark is not None:
            benchmark.has_error = True  # not saved
            if benchmark.stats is not None:
                benchmark.stats.stats.data.clear()  # not shown
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Write the case's entry when all of its phases are over."""
    handled = yield
    if is_perf_item(item) and JOURNAL in item.config.stash:
        item.config.stash[JOURNAL].close(item.name, _measurement(item))
    return handled


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add ``perf_cases`` to the run's JSON."""
    if JOURNAL in config.stash:
        output_json["perf_cases"] = config.stash[JOURNAL].perf_cases()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Save a run in which nothing was measured, which pytest-benchmark would drop; drop the journal.

    After an interruption it stays, for it holds what was measured.
    """
    if JOURNAL not in session.config.stash:
        return
    journal = session.config.stash[JOURNAL]
    benchmarks: Any = session.config._benchmarksession  # type: ignore[attr-defined]  # pytest-benchmark's, on purpose
    if not benchmarks.benchmarks and not benchmarks.disabled:
        save_without_measurements(session.config, benchmarks)
    if len(journal.entries) == len(journal.selected):
        journal.path.unlink(missing_ok=True)


def save_without_measurements(config: pytest.Config, benchmarks: Any) -> None:
    """Write the run as pytest-benchmark would have, had it measured anything: same hooks, same places."""
    save = benchmarks.save or benchmarks.autosave
    if not (save or benchmarks.json):
        return
    commit_info = config.hook.pytest_benchmark_generate_commit_info(config=config)
    config.hook.pytest_benchmark_update_commit_info(config=config, commit_info=commit_info)
    run = config.hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=[],
        include_data=True,
        machine_info=benchmarks.get_machine_info(),
        commit_info=commit_info,
    )
    config.hook.pytest_benchmark_update_json(config=config, benchmarks=[], output_json=run)
    if benchmarks.json:
        benchmarks.save_json(run)
    if save:
        benchmarks.storage.save(run, save)


def _measurement(item: pytest.Item) -> dict[str, Any] | None:
    """pytest-benchmark's record of the case, or what was counted of it without timing, if there is either."""
    benchmarks: Any = item.config._benchmarksession  # type: ignore[attr-defined]
    for bench in reversed(benchmarks.benchmarks):
        if bench.fullname == item.nodeid and bench and not bench.has_error:
            record: dict[str, Any] = json.loads(_dumps(bench.as_dict(include_data=True)))
            return record
    counted: dict[str, Any] | None = json.loads(_dumps(item.stash.get(COUNTED, None)))
    return counted


def _dumps(value: object) -> str:
    """JSON as pytest-benchmark writes it: what JSON does not know becomes text."""
    text: str = safe_dumps(value)  # type: ignore[no-untyped-call]
    return text


def _reason(report: pytest.TestReport, call: pytest.CallInfo[None]) -> str | None:
    if report.passed:
        return None
    if call.excinfo is None:
        return str(report.longrepr)
    if report.skipped:
        return str(getattr(call.excinfo.value, "msg", call.excinfo.value))
    phase = "" if report.when == "call" else f"in {report.when}: "
    return phase + first_line(call.excinfo.value)
