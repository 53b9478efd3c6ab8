"""Runs are saved whole or not at all, and what would keep one from being saved is said before it starts.

pytest-benchmark opens a run's file and then writes it. Here the file appears when it is whole; where it cannot be
written, the journal stays, so that nothing measured is lost.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.logger import PytestBenchmarkWarning
from pytest_benchmark.storage.file import FileStorage
from pytest_benchmark.utils import get_tag, safe_dumps

from perf_tests.common.errors import BadInputError
from perf_tests.common.files import check_writable, write_file
from perf_tests.common.git import forget_caller
from perf_tests.common.text import clean
from perf_tests.matrix.options import PLAN

from .outcomes import JOURNAL, PROBLEMS, storage_folder

# A case's share of a run's JSON and of its journal, with room to spare: 100 rounds with their controls take 8 kB.
BYTES_PER_CASE = 100_000
BYTES_PER_RUN = 1_000_000


class WholeFileStorage(FileStorage):
    """pytest-benchmark's storage, with files that appear when they are whole."""

    problems: list[str]

    def folder(self) -> Path:
        """Where this machine's runs are saved."""
        return Path(self.get(""))  # type: ignore[no-untyped-call]

    def save(self, output_json: dict[str, Any], save: str) -> None:
        """Save a run under the next number."""
        path = self.get(f"{self._next_num}_{save}.json")  # type: ignore[no-untyped-call]
        if _write(path, output_json, self.problems):
            self.logger.info(f"Saved benchmark data in: {path}")


def forget_calling_git(config: pytest.Config) -> None:
    """Go by the folder that pytest runs in, not by a hook's repository: the commit, also in the saved run's name."""
    if forget_caller() and config.getoption("benchmark_autosave", None):
        config.option.benchmark_autosave = get_tag()  # type: ignore[no-untyped-call]


def save_whole(session: pytest.Session) -> None:
    """Give pytest-benchmark the other way of writing, and have it write what it would not."""
    benchmarks: Any = session.config._benchmarksession  # type: ignore[attr-defined]  # pytest-benchmark's, on purpose
    problems = session.config.stash[PROBLEMS] = []
    if type(benchmarks.storage) is FileStorage:
        plain = benchmarks.storage
        storage = WholeFileStorage(plain.path, plain.logger, plain.default_machine_id)  # type: ignore[no-untyped-call]
        storage.problems = problems
        benchmarks.storage = storage

    def save_json(output_json: dict[str, Any]) -> None:
        if _write(benchmarks.json, output_json, problems):
            benchmarks.logger.info(f"Wrote benchmark data in: {benchmarks.json}")

    finish = benchmarks.finish

    def finish_whole() -> None:
        prepare_saving(session)
        with warnings.catch_warnings():
            # Its warning that it saves nothing must not become the session's error.
            warnings.simplefilter("ignore", PytestBenchmarkWarning)
            finish()

    benchmarks.save_json, benchmarks.finish = save_json, finish_whole


def check_folders(config: pytest.Config, count: int) -> None:
    """Refuse before the first of ``count`` cases what could not be saved after the last.

    Raises:
        pytest.UsageError: a folder cannot be written to, or has too little space left.
    """
    benchmarks: Any = config._benchmarksession  # type: ignore[attr-defined]
    profile = config.stash[PLAN].profile
    if profile is not None:
        check_folder(profile, "--perf-profile", count)
    check_folder(storage_folder(config), "--benchmark-storage", count)
    if (benchmarks.save or benchmarks.autosave) and isinstance(benchmarks.storage, WholeFileStorage):
        check_folder(benchmarks.storage.folder(), "--benchmark-storage", count)
    if benchmarks.json:
        if benchmarks.json.is_dir():
            raise pytest.UsageError(f"--benchmark-json: {clean(benchmarks.json)} is a folder; give a file")
        check_folder(benchmarks.json.parent, "--benchmark-json", count)


def check_folder(folder: Path, option: str, count: int) -> None:
    """Try to write in ``folder`` and look at the space left there.

    Raises:
        pytest.UsageError: with one line on what is wrong.
    """
    try:
        check_writable(folder)
    except BadInputError as error:
        raise pytest.UsageError(f"{option}: {error}; give another folder") from None
    free, needed = shutil.disk_usage(folder).free, BYTES_PER_RUN + count * BYTES_PER_CASE
    if free < needed:
        raise pytest.UsageError(
            f"{option}: {free / 1e6:.1f} MB free at {clean(folder)}, and {count} cases may need {needed / 1e6:.1f} MB"
        )


def prepare_saving(session: pytest.Session) -> None:
    """Before pytest-benchmark saves: nothing of an interrupted run, and a run without measurements too."""
    benchmarks: Any = session.config._benchmarksession  # type: ignore[attr-defined]
    if session.exitstatus == pytest.ExitCode.INTERRUPTED:
        benchmarks.save = benchmarks.autosave = benchmarks.json = None
    elif JOURNAL in session.config.stash and not benchmarks.benchmarks and not benchmarks.disabled:
        save_without_measurements(session.config, benchmarks)


def save_without_measurements(config: pytest.Config, benchmarks: Any) -> None:
    """Write the run as pytest-benchmark would have, had it measured anything: same hooks, same places."""
    save = benchmarks.save or benchmarks.autosave
    if not (save or benchmarks.json):
        return
    commit_info = config.hook.pytest_benchmark_generate_commit_info(config=config)
    config.hook.pytest_benchmark_update_commit_info(config=config, commit_info=commit_info)
    run = config.hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=[],
        include_data=True,
        machine_info=benchmarks.get_machine_info(),
        commit_info=commit_info,
    )
    config.hook.pytest_benchmark_update_json(config=config, benchmarks=[], output_json=run)
    if benchmarks.json:
        benchmarks.save_json(run)
    if save:
        benchmarks.storage.save(run, save)


def _write(path: Path, run: dict[str, Any], problems: list[str]) -> bool:
    """Write a run's JSON as pytest-benchmark does; where that fails, note why."""
    text: str = safe_dumps(run, ensure_ascii=True, indent=4)  # type: ignore[no-untyped-call]
    try:
        write_file(path, text.encode())
    except BadInputError as error:
        problems.append(str(error))
        return False
    return True
