"""When things break: nothing measured is lost, and nothing broken passes for a result."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from perf_tests import locks, machine, saving, table
from perf_tests.journal import Entry, Journal
from perf_tests.measure.out_of_memory import describe_out_of_memory
from perf_tests.options import whole_number
from perf_tests.past import Past, choose, read_journal, read_journals
from perf_tests.plan import BadInputError
from perf_tests.schema import validate_run

from .runs import ROOT, read_run, run, run_suite
from .test_run import CASES, SMALL, storage

ORIGINAL, EAGER, FLASH = CASES


def run_broken(folder: Path, broken: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run of three cases, of which the second breaks."""
    arguments = (*SMALL, "--perf-rounds", "2", "--benchmark-autosave", storage(folder), *arguments)
    plugins = ("small_checkpoints", "break_cases")
    return run_suite(*arguments, plugins=plugins, PERF_BREAK=broken, **environment)


def outcomes(saved: dict) -> dict[str, str]:
    return {entry["id"]: entry["outcome"] for entry in saved["perf_cases"]}


# Interrupted, killed, hung


def test_an_interrupted_run_is_told_and_resumed(tmp_path: Path) -> None:
    first = run_broken(tmp_path, "interrupt")
    assert first.returncode == pytest.ExitCode.INTERRUPTED, first.stdout + first.stderr
    assert "tiny.en-2-single-original" in first.stdout.partition("= performance =")[2]
    assert "perf: cut short: 1 of 3 cases done" in first.stdout
    assert not list(tmp_path.rglob("*.json"))

    second = run_broken(tmp_path, "", "--perf-resume")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "perf: resumed: 1 of 3 cases from " in second.stdout
    assert "[2/3] tiny.en-2-single-eager: " in second.stdout
    assert "] tiny.en-2-single-original: " not in second.stdout
    saved = read_run(tmp_path)
    assert validate_run(saved) == []
    assert [bench["name"] for bench in saved["benchmarks"]] == CASES
    assert [session["cases"] for session in saved["perf_resumed"]] == [1]
    assert not list(tmp_path.glob("journal_*"))


@pytest.mark.slow
def test_a_case_in_which_the_process_dies_twice_failed(tmp_path: Path) -> None:
    assert run_broken(tmp_path, "kill").returncode == -9
    assert run_broken(tmp_path, "kill", "--perf-resume").returncode == -9
    assert not list(tmp_path.rglob("*.json"))

    other = run_broken(tmp_path, "", "--perf-resume", "--perf-rounds", "3", "--perf-dtype", "bfloat16")
    assert other.returncode == pytest.ExitCode.USAGE_ERROR
    assert "dtype (float32 / bfloat16), rounds (2 / 3) (journal / now)" in other.stderr

    third = run_broken(tmp_path, "", "--perf-resume")
    assert third.returncode == 1, third.stdout + third.stderr
    saved = read_run(tmp_path)
    assert validate_run(saved) == []
    assert outcomes(saved) == {ORIGINAL: "passed", EAGER: "failed", FLASH: "passed"}
    assert saved["perf_cases"][1]["reason"] == "the process died in it, 2 times"


@pytest.mark.slow
def test_a_hang_fails_the_case_and_in_native_code_ends_the_process(tmp_path: Path) -> None:
    first = run_broken(tmp_path, "hang,native_hang", "--perf-timeout", "3")
    assert first.returncode == 1
    assert not list(tmp_path.rglob("*.json"))
    second = run_broken(tmp_path, "", "--perf-resume")
    assert second.returncode == 1, second.stdout + second.stderr
    saved = read_run(tmp_path)
    assert validate_run(saved) == []
    assert outcomes(saved) == {ORIGINAL: "failed", EAGER: "failed", FLASH: "passed"}
    in_python, in_native_code = (entry["reason"] for entry in saved["perf_cases"][:2])
    assert "Timeout (>3.0s) from pytest-timeout" in in_python
    assert in_native_code.startswith("hung, and the watchdog ended the process at ")
    assert "wait_for_ever" in in_native_code


def test_without_a_dead_run_there_is_nothing_to_resume(tmp_path: Path) -> None:
    live = Journal(tmp_path / "journal_1.jsonl", CASES, {})
    (past,) = read_journals(tmp_path)
    assert past.alive
    with pytest.raises(BadInputError, match=r"no interrupted run in .*; 1 run there still at work"):
        choose([past], CASES, {}, tmp_path)
    live.file.close()


@pytest.mark.parametrize(
    ("key", "other"), [("commit", "b"), ("package", "b"), ("gpu.name", "NVIDIA H200"), ("rounds", 5), ("cases", None)]
)
def test_another_run_is_not_resumed(key: str, other: object, tmp_path: Path) -> None:
    identity = {"commit": "a", "package": "a", "gpu.name": "NVIDIA H100", "rounds": None}
    past = Past(tmp_path / "journal_1.jsonl", CASES, identity, {}, (), alive=False)
    names, now = (CASES[:2], identity) if key == "cases" else (CASES, identity | {key: other})
    assert choose([past], CASES, identity, tmp_path) is past
    with pytest.raises(BadInputError, match=f"is of another run: {key} \\("):
        choose([past], names, now, tmp_path)


def test_what_a_dying_process_was_writing_is_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "journal_1.jsonl"
    journal = Journal(path, CASES, {"commit": "a"})
    journal.begin(ORIGINAL)
    journal.note(ORIGINAL, "passed", None)
    journal.close(ORIGINAL, {"name": ORIGINAL})
    journal.begin(EAGER)
    journal.file.write('{"id": "test_gen')
    journal.file.close()
    past = read_journal(path)
    assert past is not None
    assert [*past.entries] == [ORIGINAL]
    resumed = Journal(path, CASES, {}, past.entries, past.sessions)
    resumed.begin(EAGER)
    resumed.note(EAGER, "failed", "no")
    resumed.close(EAGER, None)
    resumed.file.close()
    again = read_journal(path)
    assert again is not None
    assert {name: entry.outcome for name, entry in again.entries.items()} == {ORIGINAL: "passed", EAGER: "failed"}
    assert [session.cases for session in again.sessions] == [1, 1]


def test_the_watchdog_s_word_marks_the_case(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal_1.jsonl", CASES, {})
    journal.begin(EAGER)
    journal.file.write(
        "Timeout (0:15:00)!\n"
        "Thread 0x00007f51 (most recent call first):\n"
        '  File "threading.py", line 3 in wait\n\n'
        "Thread 0x00007f52 (most recent call first):\n"
        '  File "attention.py", line 7 in attend\n'
        '  File "model.py", line 9 in forward\n'
    )
    journal.file.close()
    past = read_journal(journal.path)
    assert past is not None
    reason = 'hung, and the watchdog ended the process at "attention.py", line 7 in attend'
    assert past.entries == {EAGER: Entry(EAGER, "failed", reason, None)}
    assert [session.cases for session in past.sessions] == [1]


def test_an_interruption_is_no_death(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal_1.jsonl", CASES, {})
    for _ in range(2):
        journal.begin(EAGER)
        journal.leave(EAGER)
        journal.file.close()
        past = read_journal(journal.path)
        assert past is not None
        assert past.entries == {}
        journal = Journal(journal.path, CASES, {}, past.entries, past.sessions)
    journal.file.close()


def test_one_death_may_be_chance_and_two_are_the_case_s(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal_1.jsonl", CASES, {})
    for deaths in (1, 2):
        journal.begin(EAGER)
        journal.file.close()
        past = read_journal(journal.path)
        assert past is not None
        assert [*past.entries] == [EAGER][: deaths - 1]
        journal = Journal(journal.path, CASES, {}, past.entries, past.sessions)
    journal.file.close()
    assert past.entries[EAGER].reason == "the process died in it, 2 times"


HEADER = '{"journal": 2, "started": 1, "selected": ["a"], "identity": {}, "pid": 1, "process_created": 1}\n'


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "\0", '{"journal": 1}', '{"journal": 2, "selected": 3}'),
        *(
            HEADER + '{"outcome": "passed"}',
            HEADER + '{"id": "a", "outcome": "won", "reason": null, "benchmark": null}',
        ),
        HEADER + '{"id": "a", "outcome": "passed", "reason": null, "benchmark": "x"}',
    ],
)
def test_what_is_no_journal_is_not_resumed(text: str, tmp_path: Path) -> None:
    path = tmp_path / "journal_1.jsonl"
    path.write_text(text)
    assert read_journal(path) is None


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
    journal = Journal(tmp_path / "journal_1.jsonl", CASES, {})
    whole = journal.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("perf_tests.journal.os.fsync", full)
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


# No git, odd git


@pytest.fixture
def bare_tree(tmp_path: Path) -> Path:
    """The suite's files in a folder that is no checkout."""
    tree = tmp_path / "tree"
    for name in ("perf_tests", "whisper_flash_attention", "tests/suite"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    return tree


def measure_in(tree: Path, **environment: str) -> dict:
    command = [sys.executable, "-m", "pytest", "perf_tests", "-p", "no:cacheprovider"]
    command += ["-p", "tests.suite.small_checkpoints", *SMALL, "--perf-rounds", "1"]
    command += ["--perf-implementation", "original", "--benchmark-json=run.json"]
    result = run(command, cwd=tree, PYTHONPATH=str(tree), **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    saved = read_run(tree / "run.json")
    assert validate_run(saved) == []
    return saved["commit_info"]


@pytest.mark.slow
def test_no_git_at_all(bare_tree: Path) -> None:
    assert measure_in(bare_tree, PATH="/nowhere")["id"] in ("unversioned", "unknown")


@pytest.mark.slow
def test_a_detached_head_in_a_shallow_clone(bare_tree: Path, tmp_path: Path) -> None:
    def git(*arguments: str, where: Path = bare_tree) -> str:
        who = ["-c", "user.name=somebody", "-c", "user.email=somebody@localhost", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *who, *arguments], cwd=where, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    git("commit", "--quiet", "--message", "second", "--allow-empty")
    git("clone", "--quiet", "--depth", "1", bare_tree.as_uri(), str(tmp_path / "shallow"))
    git("checkout", "--quiet", "--detach", where=tmp_path / "shallow")
    info = measure_in(tmp_path / "shallow")
    assert info["id"] == git("rev-parse", "HEAD").strip()
    assert info["branch"] == "(detached head)"


# xFormers


@pytest.fixture
def broken_xformers(tmp_path: Path) -> Path:
    """A folder with an xFormers that was built for another CUDA."""
    folder = tmp_path / "site" / "xformers"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    return folder.parent


@pytest.mark.slow
def test_broken_xformers_is_told_and_not_compared(broken_xformers: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    arguments = ("--perf-implementation", "original", f"--benchmark-json={path}")
    result = run_broken(tmp_path, "no_xformers", *arguments, PYTHONPATH=f"{ROOT}{os.pathsep}{broken_xformers}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "xformers unusable" in result.stdout
    assert "perf: xFormers' attention cannot be used (xformers.ops: libcudart.so.12: cannot open" in result.stdout
    saved = read_run(path)
    assert saved["machine_info"]["xformers"] is None
    assert "libcudart.so.12" in saved["machine_info"]["xformers_problem"]
    saved["machine_info"] |= {"xformers": "0.0.35", "xformers_problem": None}
    (tmp_path / "working.json").write_text(json.dumps(saved))
    compared = run([sys.executable, "-m", "perf_tests", "compare", str(path), str(tmp_path / "working.json")])
    assert compared.returncode == 2
    assert "xformers (none / 0.0.35)" in compared.stderr


def test_xformers_counts_where_its_kernels_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.find_xformers("cpu") == machine.XFormers(None, None)

    class Ops:
        attention = sys

    monkeypatch.setattr("whisper_flash_attention.xformers_backend.load", lambda device: Ops)
    monkeypatch.setattr(machine, "version_of", {"sys": "1.2", "xformers": "0.0.35"}.get)
    assert machine.find_xformers.__wrapped__("cuda:1").version == "sys 1.2"
    monkeypatch.setattr(sys, "__name__", "xformers.ops")
    assert machine.find_xformers.__wrapped__("cuda").version == "0.0.35"


# A machine that is not at rest


@pytest.mark.parametrize(
    ("state", "note"),
    [
        ({"foreign_cpu_cores": 0.9}, "! others kept over 0.2 cores busy"),
        ({"gpu_foreign_processes": 1}, "! others"),
        ({"gpu_throttle_reasons": 0x40}, "! the GPU's clocks were throttled"),
    ],
)
def test_what_was_measured_on_a_busy_machine_is_flagged(state: dict[str, object], note: str) -> None:
    calm = {"foreign_cpu_cores": 0.0, "gpu_foreign_processes": None, "gpu_throttle_reasons": 0x5}
    info = {
        "device_state": calm,
        "speedup": None,
        "peak_memory_allocated_bytes": 1,
        "tokens_per_second": 1.0,
        "fraction_of_limit": None,
        "word_error_rate": None,
        "parity": {"tokens_equal": True, "max_abs_error": 0.0, "bound": 1.0},
    }
    params = {"setting": "single"}
    bench = {"group": "cell", "stats": {"rounds": 2, "median": 1.0}, "extra_info": info, "params": params}
    entry = Entry("test_generate[case]", "passed", None, bench)
    assert "!" not in table.render_table([entry], colour=False)
    info["device_state"] = calm | state
    text = table.render_table([entry], colour=False)
    assert "100.0 !" in text
    assert note in text


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", ""])
def test_limits_are_whole_numbers(text: str) -> None:
    assert whole_number("90", "--perf-timeout", "seconds") == 90
    with pytest.raises(BadInputError, match=r"--perf-timeout: .* is no whole number of seconds, 1 or more"):
        whole_number(text, "--perf-timeout", "seconds")
