"""``--perf-fail-on NAME`` compares the run with a promoted baseline once it is saved.

A regression makes pytest exit with 1. What could not be judged makes it exit with 4, as early as that is known: an
unusable baseline, another machine's or another clock's before anything is measured.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from pytest_benchmark.utils import get_tag, safe_dumps

from perf_tests.common.errors import BadInputError
from perf_tests.common.text import clean
from perf_tests.runs.fingerprint import SPEED_ONLY, differences, without
from perf_tests.runs.records import TIMER
from perf_tests.runs.saved import Run, parse_run, read_run
from perf_tests.runs.store import baseline_names, baseline_path

from .comparison import Comparison, compare_runs
from .config import find_config, read_config
from .thresholds import Rules
from .verdicts import FAILING

OPTION = "--perf-fail-on"


class Gate(NamedTuple):
    """What the session is compared with, and by which rules."""

    baseline: Run
    rules: Rules


GATE = pytest.StashKey[Gate]()
SAVED = pytest.StashKey[Mapping[str, Any]]()
RESULT = pytest.StashKey[Comparison | str]()


def add_option(parser: pytest.Parser) -> None:
    parser.getgroup("perf").addoption(
        OPTION,
        metavar="NAME",
        help="After saving the run, compare it with the promoted baseline NAME; fail where it regressed.",
    )


def find_baseline(config: pytest.Config) -> None:
    """Read the baseline now, and see to it that the run is saved: a verdict without its run is no evidence."""
    name = config.getoption("perf_fail_on")
    if name is None or config.option.collectonly:
        return
    try:
        config.stash[GATE] = read_gate(name)
    except BadInputError as error:
        raise pytest.UsageError(f"{OPTION}: {clean(error, 2000)}") from None
    option = config.option
    if not (option.benchmark_save or option.benchmark_autosave or option.benchmark_json):
        option.benchmark_autosave = get_tag()  # type: ignore[no-untyped-call]


def read_gate(name: str) -> Gate:
    """The baseline called ``name``, and the rules of ``pyproject.toml``.

    Raises:
        BadInputError: there is no such baseline, or it cannot be used.
    """
    path = baseline_path(name)
    if not path.exists():
        names = ", ".join(baseline_names()) or "none; python -m perf_tests promote RUN NAME makes one"
        raise BadInputError(f"no baseline is called {name!r}; there are {names}")
    baseline = read_run(path, name)
    if baseline.plain:
        raise BadInputError(f"{name}: plain pytest-benchmark without the suite's keys is no baseline")
    config = read_config(find_config())
    return Gate(baseline, Rules(patterns=config.thresholds, accepted=config.accepted))


def check_baseline(config: pytest.Config, *, counted: bool) -> None:
    """Refuse another machine's or clock's baseline before an hour of measuring, and before there is a journal of it.

    Raises:
        pytest.UsageError: it cannot be compared with what comes; ``counted`` says that nothing will be timed.
    """
    name = config.getoption("perf_fail_on")
    if GATE not in config.stash:
        return
    benchmarks: Any = config._benchmarksession  # type: ignore[attr-defined]  # pytest-benchmark's, on purpose
    # As it will be saved: torch's version, say, is no plain text before.
    machine_info = json.loads(safe_dumps(benchmarks.get_machine_info()))  # type: ignore[no-untyped-call]
    baseline = config.stash[GATE].baseline
    if counted and not baseline.counted:
        raise pytest.UsageError(f"{OPTION} {name}: timed, and --perf-counters-only is not: promote a run of it")
    unlike = without(differences(baseline.machine_info, machine_info), SPEED_ONLY if counted else ())
    if unlike:
        raise pytest.UsageError(f"{OPTION} {name}: made on an unlike machine: {', '.join(map(str, unlike))}")
    timer = config.getoption("benchmark_timer").rpartition(".")[2]
    others = {record.definition.get(TIMER) for record in baseline.records.values() if not counted} - {None, timer}
    if others:
        raise pytest.UsageError(
            f"{OPTION} {name}: timed by {clean(', '.join(map(str, others)))}, and this run by {timer}: give the same"
            " --benchmark-timer"
        )


def keep_saved(config: pytest.Config, output_json: dict[str, Any]) -> None:
    if GATE in config.stash:
        config.stash[SAVED] = json.loads(safe_dumps(output_json))  # type: ignore[no-untyped-call]


def conclude_session(session: pytest.Session) -> None:
    """Compare; pytest-benchmark and the journal have saved the run by now."""
    config = session.config
    if GATE not in config.stash or session.exitstatus not in (
        pytest.ExitCode.OK,
        pytest.ExitCode.TESTS_FAILED,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    ):
        return
    result = judge_session(config)
    config.stash[RESULT] = result
    if isinstance(result, str):
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
    elif result.verdict in FAILING:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def judge_session(config: pytest.Config) -> Comparison | str:
    """The comparison, or one line on why there is none."""
    gate = config.stash[GATE]
    if SAVED not in config.stash:
        return "nothing was saved, so there is nothing to compare"
    try:
        # The baseline is somebody's choice: that this run is of its package too is said, and no failure.
        return compare_runs(gate.baseline, parse_run(config.stash[SAVED], "this run"), gate.rules, same=True)
    except BadInputError as error:
        return str(error)


def show_verdicts(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show the verdicts, after the tables."""
    if RESULT not in config.stash:
        return
    import io

    from .terminal import print_comparison

    result = config.stash[RESULT]
    terminalreporter.section(f"compared with {config.getoption('perf_fail_on')}")
    if isinstance(result, str):
        terminalreporter.write_line(f"{OPTION}: {clean(result, 2000)}", red=True)
        return
    text = io.StringIO()
    print_comparison(result, text, colour=terminalreporter.hasmarkup)
    terminalreporter.write(text.getvalue())
