"""Journals that earlier sessions left: what they hold, which of them a run may go on with, and the run that one is."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]
import pytest_benchmark

from perf_tests.common.errors import BadInputError
from perf_tests.common.text import clean, count_of

from .journal import JOURNAL_VERSION, Context, Entry, Session, complete_run
from .schema import OUTCOMES

# The first word of faulthandler's watchdog.
HUNG = "Timeout ("
# A system that runs out of memory kills a process without a word.
OF_MEMORY = "; where memory runs out, the system kills it"
# One death may be the machine's; of a second one in the same case, the case is the cause.
MOST_DEATHS = 2


class Past(NamedTuple):
    """What a journal holds; ``context`` is its last session's.

    ``entries`` include the case that the process died in, where that was not chance.
    """

    path: Path
    selected: list[str]
    identity: Mapping[str, object]
    entries: dict[str, Entry]
    sessions: tuple[Session, ...]
    context: Context
    alive: bool

    def to_run(self) -> dict[str, Any]:
        """The run's JSON of what there is, as pytest-benchmark would have saved it: cases without an entry not run."""
        run: dict[str, Any] = {
            **self.context._asdict(),
            "benchmarks": [],
            "datetime": datetime.fromtimestamp(self.sessions[-1].started, UTC).isoformat(),
            "version": pytest_benchmark.__version__,
        }
        complete_run(run, self.selected, self.entries, self.sessions)
        return run


def choose(pasts: list[Past], names: list[str], identity: Mapping[str, object], folder: Path) -> Past:
    """The newest journal of a dead run like this one.

    Raises:
        BadInputError: there is none; says in what the newest one differs.
    """
    dead = [past for past in pasts if not past.alive]
    if not dead:
        still = f"; {count_of(len(pasts), 'run')} there still at work" if pasts else ""
        raise BadInputError(f"no interrupted run in {clean(folder)}{still}; leave the option out to begin one")
    wanted = json.loads(json.dumps(identity))
    for past in dead:
        if not _differences(past, names, wanted):
            return past
    newest = dead[0]
    what = ", ".join(_differences(newest, names, wanted))
    raise BadInputError(f"{clean(newest.path.name)} is of another run: {what} (journal / now)")


def read_journals(folder: Path) -> list[Past]:
    """The journals in ``folder`` that can be read, the one that was written to last first."""
    pasts = (read_journal(path) for path in sorted(folder.glob("journal_*.jsonl")))
    found = [past for past in pasts if past is not None]
    return sorted(found, key=lambda past: past.sessions[-1].started, reverse=True)


def read_journal(path: Path) -> Past | None:
    """Read a journal; ``None`` if it is none, or of another version.

    A line that was cut short with its process is no JSON and counts for nothing. A case that began and has no entry
    is one in which the process died: measured again, unless a watchdog left its word there or it was the second time.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        header = json.loads(lines[0])
        if header["journal"] != JOURNAL_VERSION:
            return None
        reader = _Reader()
        reader.begin_session(header["started"], header)
        for line in lines[1:]:
            reader.take(line)
        reader.end_session()
        selected = [str(name) for name in header["selected"]]
        return Past(
            path,
            selected,
            dict(header["identity"]),
            reader.entries,
            tuple(reader.sessions),
            reader.context,
            reader.alive,
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


class _Reader:
    """Takes a journal's lines one by one."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.sessions: list[Session] = []
        self._running: str | None = None
        self._watchdog: list[str] = []
        self._deaths: dict[str, int] = {}

    @property
    def alive(self) -> bool:
        """Whether the process of the last session still runs."""
        pid, created = self._process
        try:
            return bool(psutil.Process(pid).create_time() == created)
        except psutil.Error:
            return False

    def take(self, line: str) -> None:
        """The next line: JSON, a watchdog's words, or what a dying process had begun to write."""
        try:
            record = json.loads(line)
        except ValueError:
            if line.startswith(HUNG) or self._watchdog:
                self._watchdog.append(line)
            return
        if not isinstance(record, dict):
            return
        if "begin" in record:
            self._running, self._watchdog = str(record["begin"]), []
        elif "resumed" in record:
            self.end_session()
            self.begin_session(record["resumed"], record)
        elif "left" in record:
            self._running = None
        elif "outcome" in record:
            entry = Entry(**record)
            if entry.outcome not in OUTCOMES or not isinstance(entry.benchmark, dict | None):
                raise ValueError(f"no entry of a journal: {entry.id}")
            self.entries[entry.id] = entry
            self._running = None

    def begin_session(self, started: float, record: Mapping[str, Any]) -> None:
        """A process began to write."""
        self._started = float(started)
        self.context = Context(dict(record["machine_info"]), dict(record["commit_info"]))
        self._process = record["pid"], record["process_created"]

    def end_session(self) -> None:
        """The process ended here, maybe within a case."""
        name = self._running
        if name is not None:
            self._deaths[name] = self._deaths.get(name, 0) + 1
            reason = None
            if self._watchdog:
                reason = f"hung, and the watchdog ended the process{_where(self._watchdog)}"
            elif self._deaths[name] >= MOST_DEATHS:
                reason = f"the process died in it, {self._deaths[name]} times{OF_MEMORY}"
            if reason is not None:
                self.entries[name] = Entry(name, "failed", reason, None, len(self.sessions))
        done = len(self.entries) - sum(session.cases for session in self.sessions)
        self.sessions.append(self.context.session(self._started, done))
        self._running, self._watchdog = None, []


def _where(dump: list[str]) -> str:
    """Where the main thread was, of a dump by faulthandler: its last thread, most recent call first."""
    place = ""
    for before, line in pairwise(dump):
        if "most recent call first" in before and line.strip().startswith("File "):
            place = f" at {line.strip().removeprefix('File ')}"
    return place


def _differences(past: Past, names: list[str], identity: Mapping[str, object]) -> list[str]:
    keys = [*dict.fromkeys([*past.identity, *identity])]
    found = [
        f"{key} ({_show(past.identity.get(key))} / {_show(identity.get(key))})"
        for key in keys
        if past.identity.get(key) != identity.get(key)
    ]
    if past.selected != names:
        found.append(f"cases ({_count(past.selected, names)})")
    return found


def _count(ours: list[str], theirs: list[str]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} / {len(theirs)}"
    return f"{len(ours)}, {len({*ours} - {*theirs}) or 'in another order'} of them others"


def _show(value: object) -> str:
    return "none" if value is None else clean(value, 40)
