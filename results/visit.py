"""One visit to a machine with an NVIDIA GPU: both tables of 2023, in as many visits as it takes. Needs no network.

What must be there: Python 3.11 or newer with pip, PyTorch with CUDA, Transformers, NumPy, SciPy. What else the suite
imports is carried: results/collect_wheels.sh puts it into a folder, and $WHEELS names that folder here; it is unpacked
into a temporary folder, not installed.

The steps, in order of worth:

    environment   what the machine has, into environment.json                         60 s at most
    tests         the tests of the model on CUDA                                      120 s
    cells         the 13 cells in `single`, then in `batched`; original and flash     all the time there is
    kernels       the figures behind whisper_flash_attention/kernels.py, kernels.md   90 s
    again         some cells of `single` twice, which must not differ                 120 s

OUT ends with six files at most: run.json (the run, of what there is), the journal of a run that is not whole yet,
environment.json, kernels.md, tables.md and log.txt, in which every step writes. When the time is over, or at Ctrl-C,
the step at work is stopped and what it has is kept.

--resume goes on with the cases that are missing in an earlier visit's journal, on the same machine or another one of
the same GPU model and software, on any commit with the same package and measuring code; where these differ it says in
what. The step `tests` is then left out, unless it is named.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "python3"
MINUTES = 9.0
# At the end: for the step at work to stop, and for the run and the tables to be written.
GRACE_SECONDS = 15.0
RESERVE_SECONDS = GRACE_SECONDS + 15.0
# With less left, no step begins.
LEAST_SECONDS = 5.0
POLL_SECONDS = 0.2
# A flash round stands beside its control, so fewer rounds than the tables' nominal 100 and 10 are enough.
ROUNDS = "single=10,batched=2"
# No case takes so long; one that hangs must not take the visit.
CASE_SECONDS = "180"
TWICE = "tiny.en-4 or base.en-6 or small.en-12"
# In miniature: four cases.
SMALL_ROUNDS = "single=2,batched=1"
SMALL = (
    *("-p", "tests.plugins.small_checkpoints", "-p", "tests.plugins.short_batches"),
    *("--perf-checkpoint", "tiny.en", "--perf-decoder-layers", "2"),
)
SMALL_TWICE = "tiny.en-2"
# pytest's code for options that cannot be.
USAGE_ERROR = 4


class BadInputError(ValueError):
    """What was typed cannot be; one line that says why."""


class Visit:
    """A visit in progress. ``out`` is what it brings home, ``work`` the folder of what it does not."""

    def __init__(self, out: Path, work: Path, seconds: float, *, small: bool = False) -> None:
        self.out = out
        self.work = work
        self.small = small
        self.end = time.monotonic() + seconds
        self.stopped: str | None = None
        path = [str(ROOT), str(work / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
        libraries = [str(work / "cuda12/nvidia/cuda_runtime/lib"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path),
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            "HF_HUB_OFFLINE": "1",
            "PERF_STORE": str(work / "store"),
            "COLUMNS": "150",
            "PYTHONUNBUFFERED": "1",
        }

    @property
    def device(self) -> str:
        """What is measured."""
        return "cpu" if self.small else "cuda"

    @property
    def log(self) -> Path:
        """What all steps write."""
        return self.out / "log.txt"

    @property
    def run_file(self) -> Path:
        """The run of the cells."""
        return self.out / "run.json"

    @property
    def journal(self) -> Path | None:
        """The journal of a run that is not whole."""
        return next(self.out.glob("journal_*.jsonl"), None)

    def stop(self, *_: object) -> None:
        """Ctrl-C, or SIGTERM."""
        self.stopped = "interrupted"

    def call(self, *arguments: object, seconds: float = RESERVE_SECONDS, to: Path | None = None) -> int | None:
        """Run Python with ``arguments``, its standard output in the log or in ``to``.

        Returns:
            Its exit code; ``None`` where it was cut short, after ``seconds`` or with the visit.
        """
        end = min(self.end, time.monotonic() + seconds)
        with self.log.open("a") as log, (to or self.log).open("a") as output:
            # In a session of its own, so that Ctrl-C in a terminal reaches it through this process alone.
            process = subprocess.Popen(
                [PYTHON, *map(str, arguments)],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )
            while process.poll() is None and not self.stopped and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
            if process.poll() is not None:
                return process.returncode
            _stop(process, log)
        return None

    def unpack(self, wheels: Path) -> None:
        """Unpack what was carried; CUDA's runtime apart, since Python's path should have no folder named ``nvidia``.

        Raises:
            BadInputError: pip cannot.
        """
        for folder, is_runtime in (("site", False), ("cuda12", True)):
            chosen = [
                path for path in wheels.glob("*.whl") if path.name.startswith("nvidia_cuda_runtime") == is_runtime
            ]
            command = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
            command += ["--no-warn-conflicts", "--target", str(self.work / folder)]
            if chosen and self.call(*command, *chosen, seconds=120):
                raise BadInputError(f"$WHEELS: {wheels} cannot be unpacked: {self.last_line()}")

    def take(self, step: "Step") -> int | None:
        """Take a step and say how it went; returns its exit code, ``None`` where it did not end."""
        left = self.end - time.monotonic()
        if self.stopped or left < LEAST_SECONDS:
            print(f"{step.name:<12} not begun: {self.stopped or 'no time is left'}", flush=True)
            return None
        with self.log.open("a") as log:
            log.write(f"\n======== {step.name} ========\n")
        start = time.monotonic()
        code = step.take(self, min(left, step.seconds))
        how = "cut short" if code is None else f"exit code {code}"
        said = last if (last := self.last_line()) != step.name else ""
        print(f"{step.name:<12} {how:<12} {time.monotonic() - start:4.0f} s   {said}".rstrip(), flush=True)
        return code

    def last_line(self) -> str:
        """The last words in the log."""
        lines = (line.strip("= ") for line in reversed(self.log.read_text(errors="replace").splitlines()))
        return next(filter(None, lines), "")

    def measure(self, file: Path, storage: Path, seconds: float, *arguments: str) -> int | None:
        """Run the suite, its journal in ``storage``, and write its run to ``file``."""
        command = ["-m", "pytest", "perf_tests", "-p", "no:cacheprovider", "--perf-device", self.device]
        command += ["--perf-preset", "paper", "--perf-dataset", "synthetic", "--perf-timeout", CASE_SECONDS]
        command += ["--benchmark-storage", f"file://{storage}", "--benchmark-json", str(file)]
        return self.call(*command, *(SMALL if self.small else ()), *arguments, seconds=seconds)

    def write_up(self) -> int:
        """Make a run of the journal of one that is not whole, and the tables; says what it cannot.

        Returns:
            How much of it failed.
        """
        for number in (signal.SIGINT, signal.SIGTERM):  # it takes a moment, and the visit would be for nothing
            signal.signal(number, signal.SIG_IGN)
        self.stopped, self.end = None, time.monotonic() + RESERVE_SECONDS
        tables, again, failed = self.out / "tables.md", self.work / "again.md", 0
        if self.journal is not None:
            self.run_file.unlink(missing_ok=True)
            failed += self._write("merge", self.run_file, self.journal)
        if self.run_file.exists():
            failed += self._write("report", self.run_file, "--markdown", tables)
        if again.exists():
            with tables.open("a") as file:
                file.write(f"\n## Unchanged code, measured twice\n\n{again.read_text()}")
        return failed

    def _write(self, command: str, *arguments: object) -> bool:
        code = self.call("-m", "perf_tests", command, *arguments)
        if code != 0:
            print(f"{command:<12} failed       {self.last_line()}", flush=True)
        return code != 0


class Step(NamedTuple):
    """A step: the seconds that it may take, and what takes it within so many, with its exit code or ``None``."""

    name: str
    seconds: float
    take: Callable[[Visit, float], int | None]


def take_environment(visit: Visit, seconds: float) -> int | None:
    """Describe the machine."""
    return visit.call("results/describe_environment.py", to=visit.out / "environment.json", seconds=seconds)


def take_tests(visit: Visit, seconds: float) -> int | None:
    """The CUDA tests. A warning of a library is no failure here; a graph that cannot be captured is one."""
    command = ["-m", "pytest", "tests/model/test_cuda.py", "-p", "no:cacheprovider", "-q", "-rs", "-W", "default"]
    return visit.call(*command, "-W", "error:CUDA graphs are off:RuntimeWarning", seconds=seconds)


def take_cells(visit: Visit, seconds: float) -> int | None:
    """The cells of both tables, one run; where the suite's process died, another one goes on behind the case."""
    end = time.monotonic() + seconds
    arguments = ["--perf-implementation", "original", "--perf-implementation", "flash"]
    arguments += ["--perf-rounds", SMALL_ROUNDS if visit.small else ROUNDS]
    begun: int | None = None
    while True:
        resume = ["--perf-resume"] if visit.journal else []
        code = visit.measure(visit.run_file, visit.out, end - time.monotonic(), *arguments, *resume)
        journal = visit.journal
        if code in (None, USAGE_ERROR) or journal is None:
            return code
        before, begun = begun, journal.read_bytes().count(b'{"begin":')
        if before == begun:  # it does not get as far as a case
            return code


def take_kernels(visit: Visit, seconds: float) -> int | None:
    """Time the kernels."""
    small = ["--small"] if visit.small else []
    command = ["results/measure_kernels.py", "--device", visit.device, *small]
    return visit.call(*command, to=visit.out / "kernels.md", seconds=seconds)


def take_again(visit: Visit, seconds: float) -> int | None:
    """The same cells twice: a gate that fires here cannot be trusted."""
    end = time.monotonic() + seconds
    runs = [visit.work / f"again-{number}.json" for number in (1, 2)]
    narrow = ["--perf-setting", "single", "--perf-implementation", "flash", "-k", SMALL_TWICE if visit.small else TWICE]
    narrow += ["--perf-rounds", "2" if visit.small else "10"]
    for run in runs:
        code = visit.measure(run, visit.work / run.stem, end - time.monotonic(), *narrow)
        if code != 0:
            return code
    return visit.call("-m", "perf_tests", "compare", *runs, "--markdown", visit.work / "again.md")


STEPS = {
    step.name: step
    for step in (
        Step("environment", 60, take_environment),
        Step("tests", 120, take_tests),
        Step("cells", float("inf"), take_cells),
        Step("kernels", 90, take_kernels),
        Step("again", 120, take_again),
    )
}


def main(arguments: list[str]) -> int:
    """Make the visit.

    Returns:
        0 where all steps ended well, 1 where not, 2 where the visit cannot be made as it was asked for.
    """
    try:
        return make_visit(_parse(arguments))
    except BadInputError as error:
        print(f"run_on_gpu.sh: {error}", file=sys.stderr)
        return 2


def make_visit(options: argparse.Namespace) -> int:
    """Make the visit.

    Raises:
        BadInputError: OUT, the journal or the wheels cannot be used.
    """
    seconds = 60 * options.minutes - RESERVE_SECONDS
    if not seconds > 0:
        raise BadInputError(f"--minutes {options.minutes:g}: too few; half a minute of them is for writing up")
    wheels = os.environ.get("WHEELS")
    if wheels and not Path(wheels).is_dir():
        raise BadInputError(f"$WHEELS: {wheels}: no folder")
    if options.resume is not None and not options.resume.is_file():
        raise BadInputError(f"--resume {options.resume}: no file; give a visit's journal (journal_*.jsonl)")
    out: Path = options.out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInputError(f"{options.out}: there already; give each visit a folder of its own")
    out.mkdir(parents=True, exist_ok=True)
    if options.resume is not None:
        shutil.copyfile(options.resume, out / "journal_resumed.jsonl")
    default = [name for name in STEPS if name != "tests" or options.resume is None]
    with tempfile.TemporaryDirectory(prefix="visit-") as work:
        visit = Visit(out, Path(work), seconds, small=options.small)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, visit.stop)
        if wheels:
            visit.unpack(Path(wheels).resolve())
        codes = []
        for name in options.steps or default:
            codes.append(visit.take(STEPS[name]))
            if name == "cells" and codes[-1] == USAGE_ERROR:
                raise BadInputError(visit.last_line().removeprefix("ERROR: "))
        failed = visit.write_up()
    return int(failed > 0 or any(code != 0 for code in codes))


def _stop(process: "subprocess.Popen[bytes]", log: IO[str]) -> None:
    """Ctrl-C for the process and all that it started; the end where that is not enough."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
            return
        log.write(f"killed: it did not stop within {GRACE_SECONDS:.0f} s\n")
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bash results/run_on_gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="a new folder for what the visit brings home")
    add("steps", nargs="*", metavar="STEP", help="only these steps, in this order")
    add("--minutes", type=float, default=MINUTES, metavar="N", help=f"the whole visit's time (default: {MINUTES:g})")
    add("--resume", type=Path, metavar="FILE", help="go on with the journal of an earlier visit")
    add("--small", action="store_true", help="try all of it: on a CPU, with models in miniature")
    options = parser.parse_intermixed_args(arguments)
    unknown = [step for step in options.steps if step not in STEPS]
    if unknown:
        raise BadInputError(f"no step {unknown[0]}; there are {', '.join(STEPS)}")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
