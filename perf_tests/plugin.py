"""The suite's pytest plugin: every hook once, and what it calls, in order.

Cases are told from ordinary tests by ``is_perf_item``, and a session without any is left alone, but for its options.
Nothing here imports torch: ``pytest-benchmark compare`` loads this file too, and collection must start at once.

A session with cases goes through this: the baseline of ``--perf-fail-on`` is read, then the plan made; once the cases
are known, other plugins are looked at, the speech is loaded, the baseline held against this machine, the machine
locked, the disks looked at, and the journal opened, so that what is wrong is said before an hour of measuring, what
takes least to know first (``tests/session/test_startup_order.py`` holds the order). Around each case stand the progress
line, the watchdog and the journal's entry. At the end pytest-benchmark saves, then the journal goes, and the run is
compared.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from perf_tests.common.console import show_everywhere
from perf_tests.common.errors import BadInputError
from perf_tests.gate import fail_on
from perf_tests.machine import cores, describe
from perf_tests.matrix import options
from perf_tests.matrix.cases import Case
from perf_tests.matrix.components import function_of, matrix_of
from perf_tests.matrix.options import PLAN, is_perf_item
from perf_tests.session import locks, other_plugins, outcomes, resume, saving, speech, terminal, timeouts
from perf_tests.session.outcomes import JOURNAL
from perf_tests.session.progress import Progress
from perf_tests.session.terminal import PROGRESS

SUITE = Path(__file__).parent
LIMITS = pytest.StashKey[dict[str, Any]]()
HAS_CASES = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)
    timeouts.add_option(parser)
    resume.add_option(parser)
    locks.add_option(parser)
    fail_on.add_option(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before pytest-benchmark reads its options, and before torch is imported."""
    show_everywhere()
    saving.forget_calling_git(config)
    describe.let_threads_sleep()
    cores.let_threads_fit()
    # pytest-benchmark keeps raw rounds in a saved run only when asked; the gate needs them.
    config.option.benchmark_save_data = True
    # It warns of cases that failed before they were timed and of runs without any; the journal has them.
    config.addinivalue_line("filterwarnings", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning")
    fail_on.find_baseline(config)
    try:
        options.plan_session(config)
        timeouts.read_option(config)
        locks.read_option(config)
    except BadInputError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_sessionstart(session: pytest.Session) -> None:
    """The terminal is there by now, and pytest-benchmark's session."""
    session.config.stash[PROGRESS] = Progress(session.config)
    if session.config.pluginmanager.hasplugin("benchmark"):
        saving.save_whole(session)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the suite's files that the plan has no case for."""
    if collection_path.parent != SUITE or not collection_path.name.startswith("test_"):
        return None
    return True if collection_path.stem not in {matrix_of(case).file for case in config.stash[PLAN].cases} else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One item per case of the plan that the function runs, its parameters the case's four fields."""
    if {*Case._fields} <= {*metafunc.fixturenames}:
        name = metafunc.function.__name__
        chosen = [case for case in metafunc.config.stash[PLAN].cases if function_of(case) == name]
        metafunc.parametrize(Case._fields, chosen, ids=[case.id for case in chosen])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each case its limit of time."""
    timeouts.give_limits(config, [item for item in items if is_perf_item(item)])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """All that could keep a run from being measured, saved or compared, before it begins; the journal last."""
    config = session.config
    cases = [item for item in session.items if is_perf_item(item)]
    config.stash[HAS_CASES] = bool(cases)
    if not cases or config.option.collectonly or other_plugins.is_worker(config):
        return
    other_plugins.check_session(config, cases)
    speech.load_speech_of(config, cases)
    fail_on.check_baseline(config, counted=config.stash[PLAN].counters_only)
    locks.lock_machine(config)
    saving.check_folders(config, len(cases))
    resume.open_journal(session, cases)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(ids: Sequence[str]) -> None:
    """In the process that hands out what pytest-xdist's workers have collected: no cases."""
    other_plugins.refuse_workers(ids)


def pytest_report_collectionfinish(config: pytest.Config, items: Sequence[pytest.Item]) -> list[str]:
    cases = [item for item in items if is_perf_item(item)]
    if JOURNAL not in config.stash or not cases:
        return []
    header = terminal.begin_report(config, cases, alone=len(cases) == len(items))
    return [*header, *resume.describe_resumed(config)]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Around a case: what people see of it, the watchdog, and its entry in the journal."""
    with ExitStack() as around:
        if is_perf_item(item) and JOURNAL in item.config.stash:
            around.enter_context(terminal.shown(item))
            around.enter_context(timeouts.watched(item))
            around.enter_context(outcomes.recorded(item))
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if is_perf_item(item) and JOURNAL in item.config.stash:
        outcomes.refuse_second_time(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if is_perf_item(item) and JOURNAL in item.config.stash:
        outcomes.note_phase(item, call, report)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(
    report: pytest.TestReport | pytest.CollectReport, config: pytest.Config
) -> tuple[str, str, str] | None:
    """No letter for a case: it has a line of its own."""
    return terminal.status_of(report, config)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add the suite's keys, and the machine's limits where they were measured."""
    machine_info.update(describe.describe_machine(config.stash[PLAN].device))
    machine_info["limits"] = config.stash.get(LIMITS, None)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add every selected case's outcome; keep what is saved."""
    if JOURNAL in config.stash:
        outcomes.complete(config, output_json)
    fail_on.keep_saved(config, output_json)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """pytest-benchmark has saved the run: the journal goes if it is whole, and the verdict is given."""
    if JOURNAL in session.config.stash:
        resume.end_journal(session)
    fail_on.conclude_session(session)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """After pytest-benchmark's tables: ours, what was not saved or not done, the verdicts."""
    if JOURNAL in config.stash:
        terminal.show_table(terminalreporter, config)
        resume.tell_what_is_kept(terminalreporter, config)
    elif config.option.collectonly and config.stash.get(HAS_CASES, False):
        terminal.show_groups(terminalreporter, config)
    fail_on.show_verdicts(terminalreporter, config)
