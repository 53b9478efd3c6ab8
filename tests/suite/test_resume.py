"""Interrupted, killed, hung: what was measured is kept, and `--perf-resume` goes on with it."""

from pathlib import Path

import pytest

from perf_tests.journal import Entry, Journal
from perf_tests.past import Past, choose, read_journal, read_journals
from perf_tests.plan import BadInputError
from perf_tests.validation import validate_run

from .runs import read_run
from .test_breakage import EAGER, FLASH, ORIGINAL, outcomes, run_broken
from .test_run import CASES


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
    assert "dtype (float32 / bfloat16), rounds ({'single': 2} / {'single': 3}) (journal / now)" in other.stderr

    third = run_broken(tmp_path, "", "--perf-resume")
    assert third.returncode == 1, third.stdout + third.stderr
    saved = read_run(tmp_path)
    assert validate_run(saved) == []
    assert outcomes(saved) == {ORIGINAL: "passed", EAGER: "failed", FLASH: "passed"}
    assert saved["perf_cases"][1]["reason"] == "the process died in it, 2 times"


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
