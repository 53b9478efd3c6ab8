"""How far a disturbed machine moves a verdict on time, from real runs: what the rule of ``regression/disturbance.py``
follows from, and what it is held to.

    python tests/disturbances.py bank DIR            # measure what is missing: an hour; leave the machine alone
    python tests/disturbances.py condense DIR FILE   # what the gate judges of it, as one small JSON
    python tests/disturbances.py report FILE         # the table of docs/gate.md

A run is a process that measures tiny.en-2-single's flash as ``pytest perf_tests`` does, with 8 pairs of rounds of each
slow-down: they take turns, pair after pair, so that four runs share a process and nothing else.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from perf_tests.ab.process import Job, measure

ROOT = Path(__file__).parents[1]
CASE = "test_generate[tiny.en-2-single-flash]"
DELAYS = (0.0, 0.08, 0.3, 1.0)
PAIRS = 8
RUNS = 12
SPIN = "while True: pass"
COPY = "import numpy as np\na, b = np.zeros(2**25), np.ones(2**25)\nwhile True: np.copyto(a, b)"
# What else runs meanwhile, each in a process of its own.
COLUMNS: Mapping[str, Sequence[str]] = {
    "calm": (),
    "one busy core": (SPIN,),
    "both busy": (SPIN, SPIN),
    "a copy loop": (COPY,),
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("bank").add_argument("folder", type=Path)
    options = parser.parse_args()
    bank(options.folder.resolve())


def bank(folder: Path) -> None:
    """Measure what is missing, the columns in turn, so that what drifts over the hour is in all of them."""
    os.environ["PERF_PLANTED_DELAY"] = ",".join(map(str, DELAYS))
    arguments = ("--perf-device=cpu", "--perf-dataset=synthetic", f"--perf-rounds={PAIRS * len(DELAYS)}")
    for number in range(1, RUNS + 1):
        for column, others in COLUMNS.items():
            out = folder / column.replace(" ", "-") / f"{number:03}.json"
            if not out.exists():
                print(f"{column} {number} of {RUNS}", flush=True)
                with beside(others):
                    target = f"perf_tests/test_generate.py::{CASE}"
                    measure(Job(ROOT, out, (target,), (*arguments, "-p", "tests.planted_delay")))


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


if __name__ == "__main__":
    main()
