"""pytest plugin: opens the session's journal, or with ``--perf-resume`` goes on with one that a dead run left.

A run is resumed only by what would have gone on measuring the same: the same sources, options, machine and cases.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.utils import safe_dumps

from .journal import JOURNAL, PROBLEMS, Journal, new_journal_path, storage_folder
from .options import PLAN, is_perf_item
from .package import hash_package
from .past import choose, read_journals
from .plan import BadInputError, Plan
from .regression.fingerprint import fingerprint_of
from .regression.text import clean, count_of
from .terminal import SPEECH

OPTION = "--perf-resume"


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
    """What must not change while a run goes on: code, options, speech and machine.

    The code by hashes, since a commit's id knows nothing of uncommitted changes.
    """
    plan: Plan = config.stash[PLAN]
    benchmarks: Any = config._benchmarksession  # type: ignore[attr-defined]  # pytest-benchmark's, on purpose
    machine_info = json.loads(safe_dumps(benchmarks.get_machine_info()))  # type: ignore[no-untyped-call]
    speech = config.stash.get(SPEECH, None)
    commit_info = config.hook.pytest_benchmark_generate_commit_info(config=config)
    return {
        "commit": commit_info.get("id"),
        "package": machine_info.get("package_hash"),
        "suite": hash_package(Path(__file__).parent),
        "audio": speech.name if speech else None,
        **{key: value for key, value in plan._asdict().items() if key not in ("cases", "preset_reason", "dataset")},
        **fingerprint_of(machine_info),
    }
