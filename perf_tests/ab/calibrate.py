"""``python -m perf_tests calibrate``: this machine's noise, case by case, from runs of unchanged code.

Exit codes: 0 where the calibration was written, 2 where it could not be or the session was interrupted.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from perf_tests.common.cli import at_least, make_parser, run_command, split_arguments, tell, with_default
from perf_tests.common.errors import BadInputError
from perf_tests.common.text import clean, count_of, percent
from perf_tests.gate.calibration import write_calibration
from perf_tests.gate.disturbance import calm_rounds
from perf_tests.gate.noise import LEAST_RUNS, CaseNoise, measure_noise
from perf_tests.runs.fingerprint import describe_machine, differences
from perf_tests.runs.references import FORMS, add_storage, locate, storage_path
from perf_tests.runs.saved import Run, read_run
from perf_tests.runs.store import check_store

from .arguments import SESSIONS, session_kept, session_name
from .process import Job, measure_once
from .trees import WORKING_TREE, digest_of, find_repository, find_revision

RUNS = 10


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    own, rest = split_arguments(arguments)
    return run_command("calibrate", lambda: _calibrate(_parse(own), rest))


def _calibrate(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    check_store()
    runs = read_runs(options) if options.runs_from else measure_runs(options, arguments)
    check_alike(runs)
    measured, problems = noises_of(runs)
    for problem in problems:
        tell("calibrate", problem)
    if not measured:
        raise BadInputError(f"no case could be calibrated from {count_of(len(runs), 'run')}")
    path = write_calibration(runs, measured)
    if not options.runs_from:
        for run in runs:  # the session is over: the next one measures anew
            Path(run.name).unlink()
    _print_table(measured)
    machine = describe_machine(runs[0].machine_info, ("torch",))
    print(f"{clean(path)}: {count_of(len(measured), 'case')} of {machine}")
    return 0


def read_runs(options: argparse.Namespace) -> list[Run]:
    """The saved runs that ``--from`` names."""
    found = [locate(reference, storage_path(options.storage)) for reference in options.runs_from]
    return [read_run(run.path, run.name) for run in found]


def measure_runs(options: argparse.Namespace, arguments: Sequence[str]) -> list[Run]:
    """Measure the working tree again and again, each run in a fresh process; one that was interrupted goes on."""
    repository = find_repository(Path.cwd())
    arguments = with_default(arguments, "--perf-implementation", "flash")
    parts = [digest_of(repository, find_revision(repository, WORKING_TREE)), *arguments]
    folder = repository / SESSIONS / session_name("calibrate", parts)
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    runs = []
    with session_kept(folder, "save the runs elsewhere (--benchmark-storage), and give them by --from"):
        for number in range(1, options.runs + 1):
            job = Job(repository, folder / f"{number:03}.json", arguments=arguments)
            runs.append(measure_once(job, partial(tell, "calibrate", f"run {number} of {options.runs}")))
    return runs


def check_alike(runs: Sequence[Run]) -> None:
    """Refuse runs that are not of one package on one machine.

    Raises:
        BadInputError: with what two runs differ in.
    """
    for run in runs:
        if run.plain:
            raise BadInputError(f"{clean(run.name)}: plain pytest-benchmark without the suite's keys")
    for one, other in pairwise(runs):
        names = f"{clean(one.name)} and {clean(other.name)}"
        if one.document == other.document:
            raise BadInputError(f"{names}: the same run twice")
        unlike = differences(one.machine_info, other.machine_info)
        if unlike:
            raise BadInputError(f"{names}: unlike machines: {', '.join(map(str, unlike))}")
        if one.machine_info.get("package_hash") != other.machine_info.get("package_hash"):
            raise BadInputError(f"{names}: another package: noise is that of unchanged code")


def noises_of(runs: Sequence[Run]) -> tuple[Mapping[str, CaseNoise], list[str]]:
    """Each case's noise, and a line for each that has none though it has a control.

    Rounds that were disturbed do not count, and no run in which too few are left: what is calibrated is a calm machine.
    """
    found: dict[str, CaseNoise] = {}
    problems = []
    for name in runs[0].records:
        records = [run.records[name] for run in runs if name in run.records]
        timed = [record for record in records if record.ran and record.control_seconds]
        if not timed:
            continue
        if any(record.definition != timed[0].definition for record in timed):
            problems.append(f"{clean(name)}: its definition, or the clock, differs from run to run")
            continue
        calm = [rounds for record in timed if (rounds := calm_rounds(record)) is not None]
        try:
            found[name] = measure_noise(calm)
        except ValueError as error:
            disturbed = f", {len(timed) - len(calm)} more were disturbed" if len(calm) < len(timed) else ""
            problems.append(f"{clean(name)}: {error}{disturbed}")
    return found, problems


def _print_table(measured: Mapping[str, CaseNoise]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("case", overflow="fold")
    for column in ("runs", "noise", "smallest change that is found"):
        table.add_column(column, justify="right")
    for name, noise in measured.items():
        figures = [percent(value, sign=False) for value in (noise.noise, noise.smallest_visible_change)]
        table.add_row(Text(clean(name, 80)), str(noise.runs), *figures)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "noise: what the time changes by from run to run, corrected as compare does, 98 times of 100;\n"
        "the smallest slowdown that compare finds 95 times of 100, at its default thresholds, in one run of each side"
    )


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser("calibrate", "Measure this machine's noise, case by case, from runs of unchanged code.")
    add_storage(parser)
    parser.usage = "%(prog)s [options] [-- pytest arguments]"
    parser.epilog = "Only flash is measured unless --perf-implementation says otherwise: it alone has a control."
    add = parser.add_argument
    add("--runs", type=at_least(LEAST_RUNS), default=RUNS, metavar="N", help=f"how many runs (default: {RUNS})")
    add("--from", dest="runs_from", nargs="+", metavar="RUN", help=f"take saved runs instead: {FORMS}")
    add("--fresh", action="store_true", help="measure anew what an interrupted session measured")
    return parser.parse_args(arguments)
