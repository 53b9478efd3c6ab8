"""Runs as in a container: no home, a nameless user, a checkout left as it is, few cores, no shared memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.make_runs import make_run, save
from tests.running import ROOT, read_run, run

from .test_run import SMALL, storage

ONE_CASE = (*SMALL, "--perf-implementation", "original", "--perf-rounds", "2")


def measure(tree: Path, folder: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Measure a case in ``tree`` and save it in ``folder``; ``before`` is Python that runs before pytest does."""
    start = f"import os, sys; {before or 'pass'}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", start, "-m", "pytest", "perf_tests", "-p", "no:cacheprovider"]
    command += ["-p", "tests.plugins.small_checkpoints", *ONE_CASE, "--benchmark-autosave", storage(folder), *arguments]
    result = run(command, cwd=tree, PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_a_nobody_without_a_home_measures_and_writes_nothing_else(bare_tree: Path, tmp_path: Path) -> None:
    before = {*bare_tree.rglob("*")}
    measure(bare_tree, tmp_path / "runs", "-p", "tests.plugins.nobody", "--perf-dataset", "synthetic")
    assert read_run(tmp_path / "runs")["perf_cases"][0]["outcome"] == "passed"
    assert {*bare_tree.rglob("*")} == before


def command_of_a_nobody(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    start = "import sys, tests.plugins.nobody; from perf_tests.__main__ import main; sys.exit(main(sys.argv[1:]))"
    return run([sys.executable, "-P", "-c", start, *arguments], cwd=folder)


def test_without_a_home_runs_are_compared_and_nothing_is_promoted(tmp_path: Path) -> None:
    base, head = (save(make_run(seed=seed), tmp_path / f"{seed}.json") for seed in (1, 2))
    compared = command_of_a_nobody(tmp_path, "compare", str(base), str(head))
    assert compared.returncode == 0, compared.stderr
    for arguments in (("promote", str(base), "main"), ("calibrate", "--from", str(base), str(head))):
        refused = command_of_a_nobody(tmp_path, *arguments)
        assert refused.returncode == 2
        assert refused.stderr.splitlines() == [
            f"perf_tests {arguments[0]}: this user has no home folder to keep that in; set PERF_STORE to a folder"
        ]
    assert {*tmp_path.iterdir()} == {base, head}


def test_a_store_that_cannot_be_written_is_said_before_hours_of_calibrating(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    command = [sys.executable, "-m", "perf_tests", "calibrate", "--runs", "10"]
    refused = run(command, PERF_STORE=str(in_the_way / "store"))
    assert refused.returncode == 2
    assert refused.stderr.startswith("perf_tests calibrate: cannot write to ")
    assert refused.stderr.endswith("; set PERF_STORE to another folder\n")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
@pytest.mark.parametrize(
    ("before", "plugin", "cores", "shown"),
    [
        ("os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])", "small_checkpoints", 1, "1 core)"),
        ("", "quota", min(1.5, os.cpu_count() or 1), "1.5 cores)"),
    ],
    ids=["affinity", "quota"],
)
def test_threads_load_and_header_go_by_the_cores_there_are(
    before: str, plugin: str, cores: float, shown: str, tmp_path: Path
) -> None:
    result = measure(
        ROOT,
        tmp_path,
        *("-p", f"tests.plugins.{plugin}"),
        before=f"os.environ.pop('OMP_NUM_THREADS'); {before or 'pass'}",
    )
    assert shown in next(line for line in result.stdout.splitlines() if line.startswith("perf: on cpu ("))
    machine = read_run(tmp_path)["machine_info"]
    assert (machine["thread_count"], machine["available_cores"]) == (1, cores)


def test_no_shared_memory_is_needed(tmp_path: Path) -> None:
    """It is full, and nothing can be made there. In a name space of its own, which few users have the right to make."""
    inside = "mount -t tmpfs -o size=4k tmpfs /dev/shm && { cat /dev/zero > /dev/shm/full; true; } 2> /dev/null"
    inside += " && mount -o remount,ro /dev/shm"
    possible = subprocess.run(["unshare", "--mount", "sh", "-c", inside], check=False, capture_output=True)
    if possible.returncode:
        pytest.skip("this user may not mount anything")
    command = ["unshare", "--mount", "sh", "-c", f'{inside}; exec "$@"', "sh", sys.executable, "-m", "pytest"]
    command += ["perf_tests", "-p", "no:cacheprovider", "-p", "tests.plugins.small_checkpoints", *ONE_CASE]
    result = run([*command, "--benchmark-autosave", storage(tmp_path)])
    assert result.returncode == 0, result.stdout + result.stderr
    assert read_run(tmp_path)["perf_cases"][0]["outcome"] == "passed"
