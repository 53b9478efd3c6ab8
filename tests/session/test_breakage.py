"""When things break: nothing measured is lost, and nothing broken passes for a result."""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from perf_tests.common.errors import BadInputError
from perf_tests.machine.out_of_memory import describe_out_of_memory
from perf_tests.matrix.options import whole_number
from perf_tests.runs.journal import Context, Journal
from perf_tests.session import locks, saving
from tests.running import read_run, run_suite
from tests.whole_runs import validate_run

from .test_run import CASES, SMALL, storage

ORIGINAL, EAGER, FLASH = CASES


def run_broken(folder: Path, broken: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run of three cases, of which the second breaks."""
    arguments = (*SMALL, "--perf-rounds", "2", "--benchmark-autosave", storage(folder), *arguments)
    plugins = ("small_checkpoints", "break_cases")
    return run_suite(*arguments, plugins=plugins, PERF_BREAK=broken, **environment)


def outcomes(saved: dict) -> dict[str, str]:
    return {entry["id"]: entry["outcome"] for entry in saved["perf_cases"]}


# Out of memory


def test_out_of_memory_fails_one_case_with_figures(tmp_path: Path) -> None:
    result = run_broken(tmp_path, "memory")
    assert result.returncode == 1, result.stdout + result.stderr
    saved = read_run(tmp_path)
    # Flash comes after, and fails where the eager model's memory is still in use.
    assert outcomes(saved) == {ORIGINAL: "passed", EAGER: "failed", FLASH: "passed"}, saved["perf_cases"]
    reason = saved["perf_cases"][1]["reason"]
    assert reason.startswith("out of memory: asked for 3,725,290.30 GiB, ")
    assert " GiB free on the host, peak " in reason


def test_out_of_gpu_memory_has_the_gpu_s_figures() -> None:
    message = (
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.25 GiB is"
        " free. Including non-PyTorch memory, this process has 77.85 GiB memory in use."
    )
    told = describe_out_of_memory(torch.OutOfMemoryError(message))
    assert told is not None
    assert told.startswith("out of memory: asked for 2.50 GiB, 1.25 GiB free on the GPU, peak ")


def test_other_errors_are_not_out_of_memory() -> None:
    assert describe_out_of_memory(RuntimeError("Tried to allocate 2 GiB")) is None
    assert describe_out_of_memory(ValueError("DefaultCPUAllocator")) is None
    told = describe_out_of_memory(MemoryError("Unable to allocate 7.28 TiB for an array with shape (1,)"))
    assert told is not None
    assert told.startswith("out of memory: asked for 7.28 TiB, ")


# Disks


def test_a_storage_that_cannot_be_written_is_refused_before_the_first_case(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run_broken(tmp_path / "file" / "runs", "")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR, result.stdout + result.stderr
    assert "--benchmark-storage: cannot write to " in result.stderr
    assert "single-original" not in result.stdout


def test_a_folder_for_traces_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run_broken(tmp_path / "runs", "", "--perf-profile", str(tmp_path / "file" / "traces"))
    assert result.returncode == pytest.ExitCode.USAGE_ERROR, result.stdout + result.stderr
    assert "--perf-profile: cannot write to " in result.stderr


def test_too_little_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saving.check_folder(tmp_path, "--benchmark-json", 78)
    assert not list(tmp_path.iterdir())
    free = shutil.disk_usage(tmp_path)._replace(free=3_000_000)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(pytest.UsageError, match=r"3\.0 MB free at .*, and 78 cases may need 8\.8 MB"):
        saving.check_folder(tmp_path, "--benchmark-json", 78)


@pytest.mark.slow
def test_a_disk_that_runs_full_costs_nothing_earlier(tmp_path: Path) -> None:
    first = run_broken(tmp_path, "disk_full,unsaved")
    assert first.returncode == pytest.ExitCode.INTERRUPTED, first.stdout + first.stderr
    assert "No space left on device" in first.stdout
    assert "perf: cut short: " in first.stdout
    second = run_broken(tmp_path, "unsaved", "--perf-resume")
    assert second.returncode == 1, second.stdout + second.stderr
    assert "cannot be written: No space left on device" in second.stdout
    assert "perf: cut short: 3 of 3 cases done" in second.stdout
    assert not list(tmp_path.rglob("*.json"))
    third = run_broken(tmp_path, "", "--perf-resume")  # nothing is left to measure, and all to save
    assert third.returncode == 0, third.stdout + third.stderr
    saved = read_run(tmp_path)
    assert validate_run(saved) == []
    assert [bench["name"] for bench in saved["benchmarks"]] == CASES
    assert not list(tmp_path.glob("journal_*"))


def test_a_full_disk_leaves_no_half_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal_1.jsonl", CASES, {}, Context())
    whole = journal.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("perf_tests.session.outcomes.os.fsync", full)
    journal.begin(ORIGINAL)
    journal.close(ORIGINAL, None)
    journal.file.close()
    assert journal.problem is not None
    assert journal.path.read_bytes() == whole


# Two at once


def test_the_second_run_is_refused_with_who_has_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERF_LOCKS", str(tmp_path / "locks"))
    lock = locks.take("cpu", 0, print)
    result = run_broken(tmp_path, "", PERF_LOCKS=str(tmp_path / "locks"))
    lock.release()
    assert result.returncode == pytest.ExitCode.USAGE_ERROR, result.stdout + result.stderr
    assert f"another run measures on this machine's CPU (process {os.getpid()} since " in result.stderr
    assert "--perf-wait MINUTES waits for it" in result.stderr


def test_the_second_run_waits_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERF_LOCKS", str(tmp_path))
    said: list[str] = []
    first = locks.take("gpu-1", 0, print)
    locks.take("gpu-2", 0, print).release()  # another GPU is another's business
    got: list[object] = []
    second = threading.Thread(target=lambda: got.append(locks.take("gpu-1", 60, said.append)))
    second.start()
    while not said:
        time.sleep(0.01)
    assert not got
    first.release()
    second.join()
    assert got
    got[0].release()
    assert "another run measures on this GPU" in said[0]
    assert "1 min at most" in said[0]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", ""])
def test_limits_are_whole_numbers(text: str) -> None:
    assert whole_number("90", "--perf-timeout", "seconds") == 90
    with pytest.raises(BadInputError, match=r"--perf-timeout: .* is no whole number of seconds, 1 or more"):
        whole_number(text, "--perf-timeout", "seconds")
