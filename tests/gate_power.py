"""How good the gate is on this machine, from real runs: how often it finds what was planted, and what was not.

    python tests/gate_power.py bank DIR      # measure; an hour and more, resumable; leave the machine alone
    python tests/gate_power.py report DIR    # resample pairs of the banked runs, and print rates with their bars

Not a test: nothing here runs with the tests, and what it prints depends on the machine. A banked run is a plain run of
the quick preset's ``tiny.en-4-single-flash``. Rates come with their Clopper-Pearson interval over the resampled pairs;
since a run is in many pairs, it is narrower than that of as many fresh pairs would be. All are of one package: delays
are planted from outside of it. What is exact has its tests (``tests/gate/test_exact_verdicts.py``), a disturbed machine
a bank of its own (``tests/disturbances.py``), and so has ``ab`` (``tests/strict_jobs.py``).
"""

import argparse
import itertools
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.stats import binomtest

from perf_tests.ab.process import Job, measure_once
from perf_tests.gate.comparison import Comparison, compare_runs
from perf_tests.gate.noise import LEAST_RUNS, measure_noise
from perf_tests.gate.thresholds import Rules
from perf_tests.gate.verdicts import FAILING
from perf_tests.runs.saved import Run, read_run

ROOT = Path(__file__).parents[1]
CASE = "test_generate[tiny.en-4-single-flash]"
TARGET = f"perf_tests/test_generate.py::{CASE}"
ORDINARY = ("--perf-device", "cpu", "--perf-dataset", "synthetic")
SEED = 0


class Kind(NamedTuple):
    """A kind of banked run: how many, and how much flash is slowed."""

    count: int
    delay: float = 0.0


BANKED: Mapping[str, Kind] = {
    "unchanged": Kind(30),
    "slower-5": Kind(20, delay=0.05),
}


class Row(NamedTuple):
    """A row of the table: a rate, what it must be, and the rate of pytest-benchmark's own gate on the same runs."""

    what: str
    hits: int
    trials: int
    bar: str
    met: bool
    plain_hits: int


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("bank", "report"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=1000, help="at most, per row")
    options = parser.parse_args()
    if options.command == "bank":
        bank(options.folder.resolve())
    else:
        report(read_bank(options.folder), options.pairs)


# The bank


def bank(folder: Path) -> None:
    """Measure what is missing, kinds in turn, so that what drifts over the hour is in all of them."""
    wanted = [(number, name) for name, kind in BANKED.items() for number in range(1, kind.count + 1)]
    wanted.sort(key=lambda item: (item[0] / BANKED[item[1]].count, item[1]))
    for number, name in wanted:
        what = f"{name} {number} of {BANKED[name].count}"
        measure_kind(BANKED[name], folder / name / f"{number:03}.json", what)


def measure_kind(kind: Kind, out: Path, what: str) -> None:
    """One run in a fresh process, if it is missing."""
    arguments = [*ORDINARY]
    if kind.delay:
        os.environ["PERF_PLANTED_DELAY"] = str(kind.delay)
        arguments += ["-p", "tests.plugins.planted_delay"]
    measure_once(Job(ROOT, out, (TARGET,), arguments), lambda: print(what, flush=True))


def read_bank(folder: Path) -> dict[str, list[Run]]:
    """The banked runs by kind."""
    return {name: [read_run(path) for path in sorted((folder / name).glob("*.json"))] for name in BANKED}


# The report


def report(banked: Mapping[str, Sequence[Run]], most: int) -> None:
    """Print the table."""
    console = Console(highlight=False, markup=False)
    console.print(", ".join(f"{len(runs)} {name}" for name, runs in banked.items()))
    pairs = resampler(most)
    unchanged = banked["unchanged"]
    if len(unchanged) >= LEAST_RUNS:
        runs = [run.records[CASE].rounds for run in unchanged]
        noise = measure_noise(runs)
        rounds = median(len(run.seconds) for run in runs)
        console.print(
            f"{CASE}: {rounds:g} rounds, noise {100 * noise.noise:.1f} %, smallest visible change"
            f" {100 * noise.smallest_visible_change:.1f} %"
        )
    rows = [
        rate("unchanged: REGRESSED", pairs(unchanged, unchanged), "≤ 1 %", lambda share: share <= 0.01),
        rate("slower by 5 %: found", pairs(unchanged, banked["slower-5"]), "≥ 95 %", lambda share: share >= 0.95),
    ]
    console.print(make_table(rows))


def resampler(most: int) -> Callable[[Sequence[Run], Sequence[Run]], list[tuple[Run, Run]]]:
    """Pairs of two different runs, one of each kind: all there are, or a random selection of ``most``."""

    def resample(bases: Sequence[Run], heads: Sequence[Run]) -> list[tuple[Run, Run]]:
        every = [(base, head) for base, head in itertools.product(bases, heads) if base is not head]
        return random.Random(SEED).sample(every, min(most, len(every)))

    return resample


def rate(what: str, pairs: Iterable[tuple[Run, Run]], bar: str, met: Callable[[float], bool]) -> Row:
    """How often the gate fails, at its defaults, beside how often ``--benchmark-compare-fail=median:5%`` does."""
    pairs = [*pairs]
    hits = sum(is_found(compare_runs(base, head, Rules(), same=True)) for base, head in pairs)
    plain = sum(plain_gate_fails(base, head) for base, head in pairs)
    return Row(what, hits, len(pairs), bar, bool(pairs) and met(hits / len(pairs)), plain)


def is_found(comparison: Comparison) -> bool:
    """Whether the gate fails for the case."""
    return comparison.verdict in FAILING


def plain_gate_fails(base: Run, head: Run) -> bool:
    """What ``--benchmark-compare-fail=median:5%`` does with a case that both runs measured."""
    ours, theirs = (run.records.get(CASE) for run in (base, head))
    if ours is None or theirs is None or not (ours.seconds and theirs.seconds):
        return False
    return median(theirs.seconds) / median(ours.seconds) - 1 > 0.05


def make_table(rows: Iterable[Row]) -> Table:
    """The rows with their intervals."""
    table = Table("", "must be", "is", "95 % interval", "counts", "median:5% on the same runs")
    for row in rows:
        if not row.trials:
            table.add_row(row.what, row.bar, "not enough runs")
            continue
        low, high = binomtest(row.hits, row.trials).proportion_ci(method="exact")
        plain = f"{100 * row.plain_hits / row.trials:.1f} %"
        share = f"{100 * row.hits / row.trials:.1f} %"
        interval = f"{100 * low:.1f} to {100 * high:.1f} %"
        colour = "green" if row.met else "red"
        table.add_row(row.what, row.bar, Text(share, colour), interval, f"{row.hits} of {row.trials}", plain)
    return table


if __name__ == "__main__":
    main()
