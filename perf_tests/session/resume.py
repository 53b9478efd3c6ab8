"""Opens the session's journal, or with ``--perf-resume`` goes on with one that a dead run left.

A run is resumed only by what would go on measuring the same: the same package and measuring code, whatever the commit,
the same options and cases, and a machine like it. On a GPU that may be another one of the same model and software.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.utils import safe_dumps

from perf_tests.common.errors import BadInputError
from perf_tests.common.package_hash import hash_files
from perf_tests.common.text import clean, count_of
from perf_tests.matrix.options import PLAN
from perf_tests.matrix.plan import Plan
from perf_tests.runs.fingerprint import STEP, fingerprint_of
from perf_tests.runs.journal import Context, Journal
from perf_tests.runs.journals import choose, read_journals

from .outcomes import JOURNAL, PROBLEMS, new_journal_path, storage_folder
from .speech import SPEECH

OPTION = "--perf-resume"
# Of perf_tests, what no figure of a case depends on: it shows, keeps or judges what was measured. All else is hashed,
# so that what is new is asked for until somebody says that it need not be.
NOT_MEASURING = frozenset({"ab", "ci", "gate", "peers", "report", "session", "__main__"})
# Of the fingerprint, what a GPU's host may have of its own.
HOST = ("cpu.brand_raw", "thread_count", "system")


def add_option(parser: pytest.Parser) -> None:
    parser.getgroup("perf").addoption(
        OPTION,
        action="store_true",
        help="Go on with the newest run that was killed or interrupted: its finished cases are not measured again.",
    )


def open_journal(session: pytest.Session, cases: Sequence[pytest.Item]) -> None:
    """Open the journal of the ``cases`` to come; leave out those that are done.

    Raises:
        pytest.UsageError: there is no run to resume, or it is another one.
    """
    config = session.config
    names = [item.name for item in cases]
    folder = storage_folder(config)
    context = read_context(config)
    identity = identify(config, context)
    if not config.getoption("perf_resume"):
        path = new_journal_path(folder)
        try:
            config.stash[JOURNAL] = Journal(path, names, identity, context)
        except OSError as error:
            raise pytest.UsageError(f"--benchmark-storage: cannot write {path}: {error.strerror}") from None
        return
    try:
        past = choose(read_journals(folder), names, identity, folder)
    except BadInputError as error:
        raise pytest.UsageError(f"{OPTION}: {clean(error, 2000)}") from None
    config.stash[JOURNAL] = Journal(past.path, names, identity, context, past.entries, past.sessions)
    done = [item for item in cases if item.name in past.entries]
    session.items[:] = [item for item in session.items if item not in done]
    config.hook.pytest_deselected(items=done)


def describe_resumed(config: pytest.Config) -> list[str]:
    """Say what is not measured again."""
    journal = config.stash[JOURNAL]
    if not journal.earlier:
        return []
    return [f"perf: resumed: {len(journal.entries)} of {count_of(len(journal.selected), 'case')} from {journal.path}"]


def end_journal(session: pytest.Session) -> None:
    """After pytest-benchmark has saved: the journal goes when the run is whole and saved, else it stays."""
    config = session.config
    journal, problems = config.stash[JOURNAL], config.stash[PROBLEMS]
    if journal.earlier and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
    failed = any(entry.outcome == "failed" for entry in journal.entries.values())
    if (failed or problems) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    journal.file.close()
    whole = len(journal.entries) == len(journal.selected)
    if whole and not problems and session.exitstatus != pytest.ExitCode.INTERRUPTED:
        journal.path.unlink(missing_ok=True)


def tell_what_is_kept(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what could not be written, and where what was measured is."""
    journal = config.stash[JOURNAL]
    for problem in filter(None, [journal.problem, *config.stash[PROBLEMS]]):
        terminalreporter.write_line(f"perf: {problem}", red=True)
    if journal.path.exists():
        done, total = len(journal.entries), len(journal.selected)
        terminalreporter.write_line(
            f"perf: cut short: {done} of {count_of(total, 'case')} done; they are in {journal.path}, and the same"
            f" command with {OPTION} goes on"
        )


def read_context(config: pytest.Config) -> Context:
    """What pytest-benchmark will say of this machine and commit when it saves."""
    benchmarks: Any = config._benchmarksession  # type: ignore[attr-defined]  # pytest-benchmark's, on purpose
    machine_info = benchmarks.get_machine_info()
    commit_info = config.hook.pytest_benchmark_generate_commit_info(config=config)
    return Context(*json.loads(safe_dumps([machine_info, commit_info])))  # type: ignore[no-untyped-call]


def identify(config: pytest.Config, context: Context) -> dict[str, object]:
    """What must not change while a run goes on: code, options, speech and machine.

    The code by hashes, since a commit's id knows nothing of uncommitted changes, and changes with a word of the README.
    """
    plan: Plan = config.stash[PLAN]
    speech = config.stash.get(SPEECH, None)
    return {
        "package": context.machine_info.get("package_hash"),
        "measuring": hash_measuring(Path(__file__).parents[1]),
        "audio": speech.name if speech else None,
        "timer": config.getoption("benchmark_timer"),
        **{key: value for key, value in plan._asdict().items() if key not in ("cases", "preset_reason", "dataset")},
        **identify_machine(context.machine_info),
    }


def hash_measuring(suite: Path) -> str:
    """A short hash of the modules that a case's figures may depend on; ``suite`` is the folder ``perf_tests``."""
    modules = ((path, path.relative_to(suite).parts[0].removesuffix(".py")) for path in suite.rglob("*.py"))
    return hash_files(suite, (path for path, name in modules if name not in NOT_MEASURING))


def identify_machine(machine_info: Mapping[str, Any]) -> dict[str, object]:
    """The fingerprint, and the level of the compiled code; of a GPU's machine without what is the host's."""
    machine: dict[str, object] = {**fingerprint_of(machine_info), STEP: (machine_info.get(STEP) or {}).get("level")}
    if machine_info.get("gpu"):
        minor, _, _ = str(machine["python_version"]).rpartition(".")
        machine = {key: value for key, value in machine.items() if key not in HOST} | {"python_version": minor}
    return machine
