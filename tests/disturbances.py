"""How far a disturbed machine moves a verdict on time, from real runs: what ``gate/disturbance.py`` follows from,
and what the tests hold it to.

    python tests/disturbances.py bank DIR            # measure what is missing: two hours; leave the machine alone
    python tests/disturbances.py condense DIR FILE   # what the gate judges of it, as one small JSON
    python tests/disturbances.py report FILE         # the table of docs/gate.md

A run is a process that measures tiny.en-2-single's flash as ``pytest perf_tests`` does. Its slow-downs take turns, pair
after pair of rounds, so that four runs share a process and nothing else.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from perf_tests.ab.process import Job, measure
from perf_tests.gate.calibration import Noise
from perf_tests.gate.judging import judge_case
from perf_tests.gate.pairs import Pair
from perf_tests.gate.thresholds import DEFAULT_NOISE, TIME, Rules
from perf_tests.gate.verdicts import Finding, Verdict
from perf_tests.runs.device_state import Cores
from perf_tests.runs.records import Meanwhile, Record
from perf_tests.runs.statistics import Yardstick

ROOT = Path(__file__).parents[1]
CASE = "test_generate[tiny.en-2-single-flash]"
DELAYS = (0.0, 0.08, 0.3, 1.0)
RUNS = 12
SPIN = "while True: pass"
COPY = "import numpy as np\na, b = np.zeros(2**25), np.ones(2**25)\nwhile True: np.copyto(a, b)"


class Column(NamedTuple):
    """How many pairs a run has of each slow-down, and what else runs meanwhile, each in a process of its own."""

    pairs: int
    others: Sequence[str] = ()


# More pairs where the smallest slow-down is to be found; a run has 28 or so by default.
COLUMNS: Mapping[str, Column] = {
    "calm": Column(16),
    "one busy core": Column(8, (SPIN,)),
    "both busy": Column(8, (SPIN, SPIN)),
    "a copy loop": Column(8, (COPY,)),
}
ORDINARY = ("--perf-device=cpu", "--perf-dataset=synthetic")
MEASURED_ON = Cores(needed=2, spare=0)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, arguments in {
        "bank": ("folder",),
        "condense": ("folder", "file"),
        "report": ("file",),
    }.items():
        command = commands.add_parser(name)
        for argument in arguments:
            command.add_argument(argument, type=Path)
    options = parser.parse_args()
    if options.command == "bank":
        bank(options.folder.resolve())
    elif options.command == "condense":
        options.file.write_text(json.dumps(condense(options.folder)) + "\n", encoding="utf-8")
    else:
        report(read_runs(options.file))


# The bank


def bank(folder: Path) -> None:
    """Measure what is missing, the columns in turn, so that what drifts over the hour is in all of them."""
    os.environ["PERF_PLANTED_DELAY"] = ",".join(map(str, DELAYS))
    target = f"perf_tests/test_generate.py::{CASE}"
    for number in range(1, RUNS + 1):
        for name, column in COLUMNS.items():
            out = folder / name.replace(" ", "-") / f"{number:03}.json"
            if not out.exists():
                print(f"{name} {number} of {RUNS}", flush=True)
                rounds = f"--perf-rounds={column.pairs * len(DELAYS)}"
                with beside(column.others):
                    measure(Job(ROOT, out, (target,), (*ORDINARY, rounds, "-p", "tests.plugins.planted_delay")))


@contextmanager
def beside(programs: Sequence[str]) -> Iterator[None]:
    """Somebody else's processes that never wait."""
    processes = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def condense(folder: Path) -> dict[str, Any]:
    """What the gate judges of a bank's runs: seconds to 10 microseconds, by column and slow-down."""
    runs: dict[str, dict[str, list[Any]]] = {}
    document: dict[str, Any] = {}
    for column in COLUMNS:
        for path in sorted((folder / column.replace(" ", "-")).glob("*.json")):
            document = json.loads(path.read_bytes())
            for delay in DELAYS:
                own = [at for at, planted in enumerate(document["planted_delays"]) if planted == delay]
                runs.setdefault(column, {}).setdefault(str(delay), []).append(condense_case(document, own))
    machine = document["machine_info"]
    return {
        "cpu": machine["cpu"]["brand_raw"],
        "family_and_model": [machine["cpu"]["family"], machine["cpu"]["model"]],
        **{key: machine[key] for key in ("thread_count", "openmp_waiting", "torch", "transformers", "package_hash")},
        "datetime": document["datetime"],
        "runs": runs,
    }


def condense_case(document: Mapping[str, Any], rounds: Sequence[int] | None = None) -> dict[str, list[float]]:
    """What the gate judges of a run's only case, of some of its ``rounds`` or of all."""
    (bench,) = document["benchmarks"]
    info = bench["extra_info"]
    figures = {
        "seconds": bench["stats"]["data"],
        "control": info["control"]["rounds_seconds"],
        **info["yardstick"]["rounds_seconds"],
        "foreign_cpu_cores": info["device_state"]["rounds"]["foreign_cpu_cores"],
    }
    chosen = range(len(figures["seconds"])) if rounds is None else rounds
    return {name: [round(values[at], 5) for at in chosen] for name, values in figures.items()}


# What the gate makes of it


def read_runs(path: Path, cores: Cores = MEASURED_ON) -> dict[tuple[str, float], list[Record]]:
    """The runs by column and slow-down, their loads as a machine of these ``cores`` has them."""
    columns = json.loads(path.read_bytes())["runs"]
    return {
        (column, float(delay)): [make_record(run, cores) for run in runs]
        for column, by_delay in columns.items()
        for delay, runs in by_delay.items()
    }


def make_record(run: Mapping[str, Sequence[float]], cores: Cores) -> Record:
    """A run as the gate reads it."""
    return Record(
        id=CASE,
        outcome="passed",
        reason=None,
        measured=True,
        implementation="flash",
        definition={"device": "cpu"},
        seconds=tuple(run["seconds"]),
        control="original",
        control_seconds=tuple(run["control"]),
        yardstick=Yardstick(1, {part: run[part] for part in ("encoder", "decoding")}),
        meanwhile=tuple(Meanwhile(cores.foreign_share(load)) for load in run["foreign_cpu_cores"]),
    )


class Rate(NamedTuple):
    """How many of so many comparisons said REGRESSED, and how many AMBIGUOUS."""

    found: int
    ambiguous: int
    of: int

    def __str__(self) -> str:
        return f"{self.found}" + (f" and {self.ambiguous}" if self.ambiguous else "")


def rate(bases: Sequence[Record], heads: Sequence[Record]) -> Rate:
    """Every run of HEAD with the run of BASE that was measured next, by the default rules."""
    pairs = [(bases[(number + 1) % len(bases)], head) for number, head in enumerate(heads)]
    verdicts = [judge(base, head).verdict for base, head in pairs]
    return Rate(verdicts.count(Verdict.REGRESSED), verdicts.count(Verdict.AMBIGUOUS), len(verdicts))


def judge(base: Record, head: Record) -> Finding:
    """What is found of time, on a machine that was not calibrated."""
    rules, noise = Rules(kinds=frozenset({TIME})), Noise(DEFAULT_NOISE, calibrated=False)
    finding = judge_case(Pair(CASE, base, head), rules, noise).finding(TIME)
    assert finding is not None
    return finding


def report(runs: Mapping[tuple[str, float], Sequence[Record]]) -> None:
    """Print the table, in Markdown, and what unchanged code changes by."""
    print(f"| HEAD, BASE | {' | '.join(f'{100 * delay:g} % slower' for delay in DELAYS)} |")
    print("|---|" + "---|" * len(DELAYS))
    for what, base_of in (("calm", lambda column: "calm"), ("alike", lambda column: column)):
        for column in COLUMNS:
            rates = [rate(runs[base_of(column), 0.0], runs[column, delay]) for delay in DELAYS]
            print(f"| {column}, {what} | {' | '.join(map(str, rates))} |")
    for column in COLUMNS:
        changes = sorted(changes_of_unchanged(runs, column))
        most = changes[math.ceil(0.98 * len(changes)) - 1]
        print(f"{column}: unchanged code against a calm run changes by up to {100 * most:.1f} %, 98 times of 100")


def changes_of_unchanged(runs: Mapping[tuple[str, float], Sequence[Record]], column: str) -> Iterator[float]:
    """By how much every run of a column differs from every calm one, whatever was planted: that is taken out."""
    for delay in DELAYS:
        for number, head in enumerate(runs[column, delay]):
            for other, base in enumerate(runs["calm", 0.0]):
                if number != other:
                    yield abs(math.expm1(change_of(base, head) - math.log1p(delay)))


def change_of(base: Record, head: Record) -> float:
    """The logarithm by which flash's corrected time changes."""
    return median(base.rounds.logarithms()) - median(head.rounds.logarithms())


if __name__ == "__main__":
    main()
