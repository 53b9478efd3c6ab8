"""Interrupted, killed, hung: what was measured is kept, and `--perf-resume` goes on with it."""

import shutil
import sys
from pathlib import Path

import pytest

import perf_tests
from perf_tests.common.errors import BadInputError
from perf_tests.runs.journal import Context, Entry, Journal
from perf_tests.runs.journals import Past, choose, read_journal, read_journals
from perf_tests.session.resume import NOT_MEASURING, hash_measuring, identify_machine
from tests.running import read_run, run
from tests.whole_runs import validate_run

from .test_breakage import EAGER, FLASH, ORIGINAL, outcomes, run_broken
from .test_run import CASES

MACHINE = Context({"node": "here", "gpu": {"driver": "595.1"}}, {"id": "a" * 40})


def test_an_interrupted_run_is_told_and_resumed(tmp_path: Path) -> None:
    first = run_broken(tmp_path, "interrupt")
    assert first.returncode == pytest.ExitCode.INTERRUPTED, first.stdout + first.stderr
    assert "tiny.en-2-single-original" in first.stdout.partition("= performance =")[2]
    assert "perf: cut short: 1 of 3 cases done" in first.stdout
    assert not list(tmp_path.rglob("*.json"))

    other = run_broken(tmp_path, "", "--perf-resume", "--benchmark-timer", "time.process_time")
    assert other.returncode == pytest.ExitCode.USAGE_ERROR
    assert "timer (time.perf_counter / time.process_time) (journal / now)" in other.stderr

    second = run_broken(tmp_path, "", "--perf-resume")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "perf: resumed: 1 of 3 cases from " in second.stdout
    assert "[2/3] tiny.en-2-single-eager: " in second.stdout
    assert "] tiny.en-2-single-original: " not in second.stdout
    saved = read_run(tmp_path)
    assert validate_run(saved) == []
    assert [bench["name"] for bench in saved["benchmarks"]] == CASES
    assert [session["cases"] for session in saved["perf_sessions"]] == [1, 2]
    assert [entry["session"] for entry in saved["perf_cases"]] == [0, 1, 1]
    assert not list(tmp_path.glob("journal_*"))


@pytest.mark.slow
def test_a_case_in_which_the_process_dies_twice_failed(tmp_path: Path) -> None:
    assert run_broken(tmp_path, "kill").returncode == -9
    assert run_broken(tmp_path, "kill", "--perf-resume").returncode == -9
    assert not list(tmp_path.rglob("*.json"))

    other = run_broken(tmp_path, "", "--perf-resume", "--perf-rounds", "3", "--perf-dtype", "bfloat16")
    assert other.returncode == pytest.ExitCode.USAGE_ERROR
    assert "dtype (float32 / bfloat16), rounds ({'single': 2} / {'single': 3}) (journal / now)" in other.stderr

    third = run_broken(tmp_path, "", "--perf-resume")
    assert third.returncode == 1, third.stdout + third.stderr
    saved = read_run(tmp_path)
    assert validate_run(saved) == []
    assert outcomes(saved) == {ORIGINAL: "passed", EAGER: "failed", FLASH: "passed"}
    assert (
        saved["perf_cases"][1]["reason"]
        == "the process died in it, 2 times; where memory runs out, the system kills it"
    )


@pytest.mark.slow
def test_a_lost_device_ends_the_session_and_another_goes_on(tmp_path: Path) -> None:
    first = run_broken(tmp_path, "lost")
    assert first.returncode == 2
    assert "the GPU takes no more work of this process: CUDA error: an illegal memory access" in first.stdout
    assert "2 of 3 cases done" in first.stdout
    run_broken(tmp_path, "", "--perf-resume")
    assert outcomes(read_run(tmp_path)) == {ORIGINAL: "passed", EAGER: "failed", FLASH: "passed"}


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
    live = Journal(tmp_path / "journal_1.jsonl", CASES, {}, Context())
    (past,) = read_journals(tmp_path)
    assert past.alive
    with pytest.raises(BadInputError, match=r"no interrupted run in .*; 1 run there still at work"):
        choose([past], CASES, {}, tmp_path)
    live.file.close()


@pytest.mark.parametrize(
    ("key", "other"),
    [("measuring", "b"), ("package", "b"), ("gpu.name", "H200"), ("rounds", {"single": 5}), ("cases", None)],
)
def test_another_run_is_not_resumed(key: str, other: object, tmp_path: Path) -> None:
    identity = {"measuring": "a", "package": "a", "gpu.name": "NVIDIA H100", "rounds": {}}
    past = Past(tmp_path / "journal_1.jsonl", CASES, identity, {}, (), Context(), alive=False)
    names, now = (CASES[:2], identity) if key == "cases" else (CASES, identity | {key: other})
    assert choose([past], CASES, identity, tmp_path) is past
    with pytest.raises(BadInputError, match=f"is of another run: {key} \\("):
        choose([past], names, now, tmp_path)


GPU = {
    "gpu": {"name": "NVIDIA H200", "compute_capability": "9.0", "driver": "595.1"},
    "cpu": {"brand_raw": "A CPU"},
    "thread_count": 16,
    "system": "Linux",
    "python_version": "3.12.3",
    "torch": "2.11.0+cu130",
    "compiled_step": None,
}


@pytest.mark.parametrize(
    ("change", "resumes_on_gpu", "resumes_on_cpu"),
    [
        ({}, True, True),
        ({"cpu": {"brand_raw": "Another CPU"}}, True, False),
        ({"thread_count": 8}, True, False),
        ({"python_version": "3.12.11"}, True, False),
        ({"python_version": "3.13.3"}, False, False),
        ({"torch": "2.13.0"}, False, False),
        ({"tf32_matmul": True}, False, False),
        ({"compiled_step": {"level": "avx2"}}, False, False),
    ],
)
def test_which_machines_may_go_on(change: dict[str, object], resumes_on_gpu: bool, resumes_on_cpu: bool) -> None:
    on_cpu = GPU | {"gpu": None}
    assert (identify_machine(GPU) == identify_machine(GPU | change)) == resumes_on_gpu
    assert (identify_machine(on_cpu) == identify_machine(on_cpu | change)) == resumes_on_cpu
    assert identify_machine(GPU) != identify_machine(GPU | {"gpu": GPU["gpu"] | {"name": "NVIDIA H100"}})


SUITE = Path(perf_tests.__file__).parent


@pytest.mark.parametrize(
    ("module", "counts"),
    [
        ("measure/time.py", True),
        ("measure/procedure.py", True),
        ("new.py", True),
        ("report/page.py", False),
        ("session/saving.py", False),
    ],
)
def test_measuring_code_alone_must_be_the_same(module: str, counts: bool, tmp_path: Path) -> None:
    copy = tmp_path / "perf_tests"
    shutil.copytree(SUITE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert hash_measuring(copy) == hash_measuring(SUITE)
    with (copy / module).open("a") as file:
        file.write("\n")
    assert (hash_measuring(copy) != hash_measuring(SUITE)) == counts


def test_what_is_left_out_of_the_hash_measures_nothing() -> None:
    """None of it is imported by what measures."""
    measuring = "measure.procedure", "measure.counting", "subjects.components.workspace"
    probe = f"import sys, {', '.join(f'perf_tests.{name}' for name in measuring)}; print(*sys.modules)"
    result = run([sys.executable, "-c", probe])
    parts = (name.split(".") for name in result.stdout.split())
    imported = {part[1] for part in parts if part[0] == "perf_tests" and len(part) > 1}
    assert {"measure", "matrix", "subjects"} <= imported, result.stderr
    assert not imported & NOT_MEASURING
    assert {*NOT_MEASURING} <= {path.name.removesuffix(".py") for path in SUITE.iterdir()}


def test_what_a_dying_process_was_writing_is_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "journal_1.jsonl"
    journal = Journal(path, CASES, {"package": "a"}, MACHINE)
    journal.begin(ORIGINAL)
    journal.note(ORIGINAL, "passed", None)
    journal.close(ORIGINAL, {"name": ORIGINAL, "stats": {}})
    journal.begin(EAGER)
    journal.file.write('{"id": "test_gen')
    journal.file.close()
    past = read_journal(path)
    assert past is not None
    assert [*past.entries] == [ORIGINAL]
    resumed = Journal(path, CASES, {}, MACHINE, past.entries, past.sessions)
    resumed.begin(EAGER)
    resumed.note(EAGER, "failed", "no")
    resumed.close(EAGER, None)
    resumed.file.close()
    again = read_journal(path)
    assert again is not None
    assert {name: entry.outcome for name, entry in again.entries.items()} == {ORIGINAL: "passed", EAGER: "failed"}
    assert [session.cases for session in again.sessions] == [1, 1]
    run = again.to_run()
    assert [bench["name"] for bench in run["benchmarks"]] == [ORIGINAL]
    assert [(entry["outcome"], entry["session"]) for entry in run["perf_cases"]] == [
        ("passed", 0),
        ("failed", 1),
        ("skipped", None),
    ]
    assert {(session["node"], session["driver"]) for session in run["perf_sessions"]} == {("here", "595.1")}
    assert run["machine_info"] == MACHINE.machine_info


def test_the_watchdog_s_word_marks_the_case(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal_1.jsonl", CASES, {}, Context())
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
    assert past.entries == {EAGER: Entry(EAGER, "failed", reason, None, 0)}
    assert [session.cases for session in past.sessions] == [1]


def test_an_interruption_is_no_death(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal_1.jsonl", CASES, {}, Context())
    for _ in range(2):
        journal.begin(EAGER)
        journal.leave(EAGER)
        journal.file.close()
        past = read_journal(journal.path)
        assert past is not None
        assert past.entries == {}
        journal = Journal(journal.path, CASES, {}, MACHINE, past.entries, past.sessions)
    journal.file.close()


def test_one_death_may_be_chance_and_two_are_the_case_s(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal_1.jsonl", CASES, {}, Context())
    for deaths in (1, 2):
        journal.begin(EAGER)
        journal.file.close()
        past = read_journal(journal.path)
        assert past is not None
        assert [*past.entries] == [EAGER][: deaths - 1]
        journal = Journal(journal.path, CASES, {}, MACHINE, past.entries, past.sessions)
    journal.file.close()
    assert past.entries[EAGER].reason == "the process died in it, 2 times; where memory runs out, the system kills it"


HEADER = (
    '{"journal": 3, "started": 1, "selected": ["a"], "identity": {}, "machine_info": {}, "commit_info": {}, "pid": 1,'
    ' "process_created": 1}\n'
)
ENTRY = '{"id": "a", "outcome": "passed", "reason": null, "benchmark": null, "session": 0}\n'


def test_the_least_journal_is_read(tmp_path: Path) -> None:
    """What the next test damages."""
    path = tmp_path / "journal_1.jsonl"
    path.write_text(HEADER + ENTRY)
    past = read_journal(path)
    assert past is not None
    assert [*past.entries] == ["a"]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[]",
            "{}",
            "\0",
            '{"journal": 1}',
            HEADER.replace('["a"]', "3"),
            HEADER.replace('"machine_info": {}, ', ""),
        ),
        *(
            HEADER + '{"outcome": "passed"}',
            HEADER + ENTRY.replace("passed", "won"),
            HEADER + ENTRY.replace('"benchmark": null', '"benchmark": "x"'),
        ),
    ],
)
def test_what_is_no_journal_is_not_resumed(text: str, tmp_path: Path) -> None:
    path = tmp_path / "journal_1.jsonl"
    path.write_text(text)
    assert read_journal(path) is None
