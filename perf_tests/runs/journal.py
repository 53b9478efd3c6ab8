"""The journal of a session: each selected case's outcome, on disk as it ends.

A run that was killed or interrupted leaves it, ``--perf-resume`` goes on from it, and ``merge`` makes a run of it
(``journals.py`` reads what earlier sessions left).
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil  # type: ignore[import-untyped]
from pytest_benchmark.utils import safe_dumps

JOURNAL_VERSION = 3
NOT_RUN = "not run: the session ended before it"


class Entry(NamedTuple):
    """How a case ended, and in which of the run's sessions.

    ``benchmark`` is pytest-benchmark's record with its rounds, if it passed; without ``stats`` if it was counted.
    """

    id: str
    outcome: str
    reason: str | None
    benchmark: dict[str, Any] | None
    session: int | None

    @property
    def counted(self) -> bool:
        """Whether it was counted without timing."""
        return self.benchmark is not None and "stats" not in self.benchmark


class Session(NamedTuple):
    """A session that measured a part of a run (``schema.PERF_SESSIONS``)."""

    started: float
    cases: int
    commit: str | None = None
    node: str | None = None
    cpu: str | None = None
    thread_count: int | None = None
    driver: str | None = None


class Context(NamedTuple):
    """What pytest-benchmark says of a session beside its ``benchmarks``."""

    machine_info: Mapping[str, Any] = {}
    commit_info: Mapping[str, Any] = {}

    def session(self, started: float, cases: int) -> Session:
        """The session that began at ``started``, seconds since 1970, and ended so many cases."""
        machine = self.machine_info
        return Session(
            started,
            cases,
            commit=self.commit_info.get("id"),
            node=machine.get("node"),
            cpu=(machine.get("cpu") or {}).get("brand_raw"),
            thread_count=machine.get("thread_count"),
            driver=(machine.get("gpu") or {}).get("driver"),
        )


class Journal:
    """The outcomes so far, in memory and in a file of JSON lines.

    The file holds a header, then for each case a line as it begins and its entry as it ends. A session that resumes
    the run appends to it. ``file`` is open as long as the journal is, for a watchdog to write to.
    """

    def __init__(
        self,
        path: Path,
        selected: list[str],
        identity: Mapping[str, object],
        context: Context,
        entries: Mapping[str, Entry] = {},
        earlier: tuple[Session, ...] = (),
    ) -> None:
        """Begin a journal at ``path``, or go on with the one of ``earlier`` sessions that holds ``entries``.

        Raises:
            OSError: it cannot be written.
        """
        self.path = path
        self.selected = selected
        self.entries = dict(entries)
        self.earlier = earlier
        self.problem: str | None = None
        self.context = context
        self._started = time.time()
        self._reports: dict[str, tuple[str, str | None]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and not path.read_bytes().endswith(b"\n")  # the process died while it wrote
        self.file: IO[str] = path.open("a", encoding="utf-8")
        if torn:
            self.file.write("\n")
        header = {"journal": JOURNAL_VERSION, "started": self._started, "selected": selected, "identity": identity}
        self._append((header if not earlier else {"resumed": self._started}) | context._asdict() | _this_process())

    @property
    def done_before(self) -> int:
        """How many cases were done when this session began."""
        return sum(session.cases for session in self.earlier)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """All sessions so far, this one included."""
        return (*self.earlier, self.context.session(self._started, len(self.entries) - self.done_before))

    def begin(self, name: str) -> None:
        """A case begins: should the process die in it, the journal says so."""
        self._write({"begin": name})

    def leave(self, name: str) -> None:
        """The user interrupted a case: not its fault."""
        self._write({"left": name})

    def has_begun(self, name: str) -> bool:
        """Whether a phase of the case has ended in this session."""
        return name in self._reports

    def note(self, name: str, outcome: str, reason: str | None) -> None:
        """Note the outcome of one phase of a case; the first phase that did not pass decides."""
        if self._reports.get(name, ("passed", None))[0] == "passed":
            self._reports[name] = outcome, reason

    def close(self, name: str, benchmark: dict[str, Any] | None) -> Entry:
        """A case has ended: write its entry to the disk, for good."""
        outcome, reason = self._reports.get(name, ("skipped", NOT_RUN))
        entry = Entry(name, outcome, reason, benchmark if outcome == "passed" else None, len(self.earlier))
        self.entries[name] = entry
        self._write(entry._asdict())
        return entry

    def _write(self, line: dict[str, Any]) -> None:
        """Append, or note that it cannot be done: what is on the disk already stays whole."""
        if self.problem is not None:
            return
        length = self.path.stat().st_size if self.path.exists() else 0
        try:
            self._append(line)
        except OSError as error:
            self.problem = f"{self.path}: cannot be written: {error.strerror}"
            with self.path.open("rb+") as file:
                file.truncate(length)

    def _append(self, line: dict[str, Any]) -> None:
        self.file.write(dumps(line) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())


def complete_run(
    run: dict[str, Any], selected: Sequence[str], entries: Mapping[str, Entry], sessions: Sequence[Session]
) -> None:
    """Add to a run's JSON what the journal has: the outcome of every selected case, and the sessions.

    ``benchmarks`` are those of the session at hand; those of the others join them, in the order of collection.
    """
    here = {bench["name"] for bench in run["benchmarks"]}
    before = [
        entry.benchmark for entry in entries.values() if entry.benchmark and not entry.counted and entry.id not in here
    ]
    order = {name: index for index, name in enumerate(selected)}
    run["benchmarks"] = sorted([*before, *run["benchmarks"]], key=lambda bench: order.get(bench["name"], len(order)))
    run["perf_cases"] = [_outcome(entries.get(name, Entry(name, "skipped", NOT_RUN, None, None))) for name in selected]
    run["perf_sessions"] = [session._asdict() for session in sessions]


def _outcome(entry: Entry) -> dict[str, Any]:
    """An entry of the run's ``perf_cases``."""
    outcome = {key: getattr(entry, key) for key in ("id", "outcome", "reason", "session")}
    if entry.benchmark is not None and entry.counted:
        outcome |= {key: entry.benchmark[key] for key in ("params", "extra_info")}
    return outcome


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "process_created": psutil.Process().create_time()}


def dumps(value: object) -> str:
    """JSON as pytest-benchmark writes it: what JSON does not know becomes text."""
    text: str = safe_dumps(value)  # type: ignore[no-untyped-call]
    return text
