"""A repository with two commits that differ in the package, and processes that only pretend to measure."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from perf_tests.ab import command, session
from perf_tests.ab.process import Job
from perf_tests.common.package_hash import PACKAGE, hash_package
from perf_tests.runs.saved import Run, read_run
from tests.make_runs import info_of, make_run, save, slow_down


class Repository(NamedTuple):
    """A checkout; `base` and `head` are its two commits."""

    root: Path
    base: str
    head: str

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(root: Path, message: str) -> str:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", message)
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init", "--quiet")
    made = Repository(root, "", "")
    made.write(f"{PACKAGE}/__init__.py", "version = 1\n")
    made.write(f"{PACKAGE}/old.py", "")
    made.write("perf_tests/__init__.py", "suite = 1\n")
    made.write(".gitignore", "/.perf_runs/\nignored\n")
    base = commit(root, "base")
    made.write(f"{PACKAGE}/__init__.py", "version = 2\n")
    (root / PACKAGE / "old.py").unlink()
    made.write("perf_tests/__init__.py", "suite = 2\n")
    head = commit(root, "head")
    monkeypatch.chdir(root)
    monkeypatch.setenv("PERF_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "400")
    return Repository(root, base, head)


class Lab:
    """Stands for pytest: gives each job a run of its tree's package.

    `factors` slows a side down, by its tree's name; `spoil` may change a run before it is saved; `interrupt_at` is
    the number of the job that Ctrl-C ends.
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.factors: dict[str, float] = {}
        self.spoil: Callable[[dict[str, Any], Job], None] = lambda run, job: None
        self.interrupt_at = 0
        self.rounds = 20

    def measure(self, job: Job) -> Run:
        self.jobs.append(job)
        if len(self.jobs) == self.interrupt_at:
            raise KeyboardInterrupt
        run = make_run(seed=len(self.jobs), rounds=self.rounds)
        run["machine_info"] |= {
            "package_path": str(job.tree / PACKAGE),
            "package_hash": hash_package(job.tree / PACKAGE),
        }
        info_of(run)["control"]["position"] = "after" if job.control_after else "before"
        slow_down(run, self.factors.get(job.tree.name, 1.0))
        self.spoil(run, job)
        if job.targets != ("perf_tests",):
            names = [target.rpartition("::")[2] for target in job.targets]
            run["benchmarks"] = [bench for bench in run["benchmarks"] if bench["name"] in names]
            run["perf_cases"] = [entry for entry in run["perf_cases"] if entry["id"] in names]
        save(run, job.out)
        return read_run(job.out)

    def order(self) -> str:
        """Sides and positions in the order in which they ran, e.g. `Bb Hb Ha Ba`."""
        return " ".join(f"{job.tree.name[0].upper()}{'a' if job.control_after else 'b'}" for job in self.jobs)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab()
    monkeypatch.setattr("perf_tests.ab.process.measure", made.measure)
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process takes a minute."""
    ticks: Iterator[float] = iter(range(0, 100_000, 60))
    monkeypatch.setattr(session.time, "monotonic", lambda: next(ticks))


class Outcome(NamedTuple):
    """What a command did; `report` is its JSON, if it wrote one."""

    code: int
    out: str
    err: str
    report: dict[str, Any]


@pytest.fixture
def ab(repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `ab BASE HEAD` with the arguments given, and `--json`."""

    def run(*arguments: str, base: str = repository.base, head: str = repository.head) -> Outcome:
        report = tmp_path / "report.json"
        code = command.main([base, head, "--json", str(report), *arguments])
        out, err = capsys.readouterr()
        return Outcome(code, out, err, json.loads(report.read_text()) if report.exists() else {})

    return run
