"""pytest plugin: opens the session's journal, or with ``--perf-resume`` goes on with one that a dead run left.

A run is resumed only by what would have gone on measuring the same: the same sources, options, machine and cases.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]
import pytest
from pytest_benchmark.utils import safe_dumps

from .journal import JOURNAL, JOURNAL_VERSION, PROBLEMS, Entry, Journal, Session, new_journal_path, storage_folder
from .options import PLAN, is_perf_item
from .plan import BadInputError, Plan
from .regression.fingerprint import fingerprint_of
from .regression.text import clean, count_of
from .schema import OUTCOMES
from .terminal import SPEECH

OPTION = "--perf-resume"
SOURCES = ("whisper_flash_attention", "perf_tests")
HUNG = "Timeout ("
MOST_DEATHS = 2


class Past(NamedTuple):
    """What a journal holds. ``entries`` include the case that the process died in, where that was not chance."""

    path: Path
    selected: list[str]
    identity: Mapping[str, object]
    entries: dict[str, Entry]
    sessions: tuple[Session, ...]
    alive: bool


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("perf").addoption(
        OPTION,
        action="store_true",
        help="Go on with the newest run that was killed or interrupted: its finished cases are not measured again.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Open the journal when the cases to come are known; leave out those that are done.

    Raises:
        pytest.UsageError: there is no run to resume, or it is another one.
    """
    config = session.config
    names = [item.name for item in session.items if is_perf_item(item)]
    if not names or config.option.collectonly:
        return
    folder = storage_folder(config)
    identity = identify(config)
    if not config.getoption("perf_resume"):
        path = new_journal_path(folder)
        try:
            config.stash[JOURNAL] = Journal(path, names, identity)
        except OSError as error:
            raise pytest.UsageError(f"--benchmark-storage: cannot write {path}: {error.strerror}") from None
        return
    try:
        past = choose(read_journals(folder), names, identity, folder)
    except BadInputError as error:
        raise pytest.UsageError(f"{OPTION}: {clean(error, 2000)}") from None
    config.stash[JOURNAL] = Journal(past.path, names, identity, past.entries, past.sessions)
    done = [item for item in session.items if is_perf_item(item) and item.name in past.entries]
    session.items[:] = [item for item in session.items if item not in done]
    config.hook.pytest_deselected(items=done)


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Say what is not measured again."""
    journal = config.stash.get(JOURNAL, None)
    if journal is None or not journal.earlier:
        return []
    return [f"perf: resumed: {len(journal.entries)} of {count_of(len(journal.selected), 'case')} from {journal.path}"]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """After pytest-benchmark has saved: the journal goes when the run is whole and saved, else it stays."""
    config = session.config
    if JOURNAL not in config.stash:
        return
    journal, problems = config.stash[JOURNAL], config.stash[PROBLEMS]
    if journal.earlier and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        failed = any(entry.outcome == "failed" for entry in journal.entries.values())
        session.exitstatus = pytest.ExitCode.TESTS_FAILED if failed else pytest.ExitCode.OK
    if problems and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    journal.file.close()
    whole = len(journal.entries) == len(journal.selected)
    if whole and not problems and session.exitstatus != pytest.ExitCode.INTERRUPTED:
        journal.path.unlink(missing_ok=True)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what could not be written, and where what was measured is."""
    if JOURNAL not in config.stash:
        return
    journal = config.stash[JOURNAL]
    for problem in filter(None, [journal.problem, *config.stash[PROBLEMS]]):
        terminalreporter.write_line(f"perf: {problem}", red=True)
    if journal.path.exists():
        done, total = len(journal.entries), len(journal.selected)
        terminalreporter.write_line(
            f"perf: cut short: {done} of {count_of(total, 'case')} done; they are in {journal.path}, and the same"
            f" command with {OPTION} goes on"
        )


def identify(config: pytest.Config) -> dict[str, object]:
    """What must not change while a run goes on: sources, options, speech and machine."""
    plan: Plan = config.stash[PLAN]
    benchmarks: Any = config._benchmarksession  # type: ignore[attr-defined]  # pytest-benchmark's, on purpose
    machine_info = json.loads(safe_dumps(benchmarks.get_machine_info()))  # type: ignore[no-untyped-call]
    speech = config.stash.get(SPEECH, None)
    commit_info = config.hook.pytest_benchmark_generate_commit_info(config=config)
    return {
        "commit": commit_info.get("id"),
        "sources": digest_sources(),
        "audio": speech.name if speech else None,
        **{key: value for key, value in plan._asdict().items() if key not in ("cases", "preset_reason", "dataset")},
        **fingerprint_of(machine_info),
    }


def digest_sources() -> str:
    """A hash of the Python files of the model and the suite: a commit's id does not know uncommitted changes."""
    digest = hashlib.sha256()
    for package in SOURCES:
        spec = find_spec(package)
        root = Path(spec.origin).parent if spec and spec.origin else Path(package)
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


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
    """The journals in ``folder`` that can be read, newest first."""
    pasts = (read_journal(path) for path in sorted(folder.glob("journal_*.jsonl"), reverse=True))
    return [past for past in pasts if past is not None]


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
        reader = _Reader(float(header["started"]), header)
        for line in lines[1:]:
            reader.take(line)
        reader.end_session()
        selected = [str(name) for name in header["selected"]]
        return Past(path, selected, dict(header["identity"]), reader.entries, tuple(reader.sessions), reader.alive)
    except (OSError, ValueError, LookupError, TypeError):
        return None


class _Reader:
    """Takes a journal's lines one by one."""

    def __init__(self, started: float, header: Mapping[str, Any]) -> None:
        self.entries: dict[str, Entry] = {}
        self.sessions: list[Session] = []
        self._started = started
        self._process = header["pid"], header["process_created"]
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
            self._started = float(record["resumed"])
            self._process = record["pid"], record["process_created"]
        elif "outcome" in record:
            entry = Entry(**record)
            if entry.outcome not in OUTCOMES or not isinstance(entry.benchmark, dict | None):
                raise ValueError(f"no entry of a journal: {entry.id}")
            self.entries[entry.id] = entry
            self._running = None

    def end_session(self) -> None:
        """The process ended here, maybe within a case."""
        name = self._running
        if name is not None:
            self._deaths[name] = self._deaths.get(name, 0) + 1
            if self._watchdog:
                reason = f"hung, and the watchdog ended the process{_where(self._watchdog)}"
                self.entries[name] = Entry(name, "failed", reason, None)
            elif self._deaths[name] >= MOST_DEATHS:
                reason = f"the process died in it, {self._deaths[name]} times"
                self.entries[name] = Entry(name, "failed", reason, None)
        done = len(self.entries) - sum(session.cases for session in self.sessions)
        self.sessions.append(Session(self._started, done))
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
