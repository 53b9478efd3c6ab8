"""One fresh process that measures: pytest on the suite of a tree, its run and its output kept on disk."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from perf_tests.common.errors import BadInputError
from perf_tests.common.text import clean
from perf_tests.runs.journals import OF_MEMORY
from perf_tests.runs.saved import Run, read_run

SUITE = "perf_tests"
# pytest's exit codes with which a run is saved: all cases passed, or some did not.
MEASURED = (0, 1)
INTERRUPT_SECONDS = 20


class Job(NamedTuple):
    """What one process measures: ``targets`` are pytest's, in ``tree``; ``out`` is the run's file."""

    tree: Path
    out: Path
    targets: Sequence[str] = (SUITE,)
    arguments: Sequence[str] = ()
    control_after: bool = False

    @property
    def log(self) -> Path:
        """The file with what the process printed."""
        return self.out.with_suffix(".log")

    def command(self, out: Path) -> list[str]:
        position = ["--perf-control-after"] if self.control_after else []
        return [
            *(sys.executable, "-m", "pytest", *self.targets, "-p", "no:cacheprovider"),
            *(f"--benchmark-json={out}", *position, *self.arguments),
        ]


def measure(job: Job) -> Run:
    """Run the job's process to its end; the run's file appears when it is whole.

    Raises:
        BadInputError: the process ended without a run; the line quotes what it said last.
    """
    job.out.parent.mkdir(parents=True, exist_ok=True)
    draft = job.out.with_suffix(".partial")
    paths = [str(job.tree), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with job.log.open("wb") as log:
        process = subprocess.Popen(
            job.command(draft.resolve()), cwd=job.tree, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait()
        except BaseException:
            _stop(process)
            draft.unlink(missing_ok=True)
            raise
    if code not in MEASURED or not draft.exists() or not draft.stat().st_size:
        draft.unlink(missing_ok=True)
        how = f"ended with {code}" if code >= 0 else f"was killed by signal {-code}"
        of_memory = OF_MEMORY if code == -signal.SIGKILL else ""
        raise BadInputError(f"pytest in {clean(job.tree)} {how}{of_memory}: {_last_words(job.log)}")
    draft.replace(job.out)
    return read_run(job.out)


def measure_once(job: Job, tell: Callable[[], object] = lambda: None) -> Run:
    """The job's run: what an interrupted session left of it, or measured now, after ``tell``.

    Raises:
        BadInputError: as ``measure``.
    """
    if job.out.exists():
        return read_run(job.out)
    tell()
    return measure(job)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process as Ctrl-C would, or else for good."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(INTERRUPT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(log: Path) -> str:
    """The line of a log that says most: the last one with an error, else the last."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()]
    last = (telling or lines or ["nothing was printed"])[-1]
    return f"{clean(last, 200)} (all of it: {clean(log)})"
