"""What is wrong is said in this order, whatever else is wrong too: what is known soonest first, what costs most last.

And a session's own lines come in theirs: the header, then the cases, the table, what was kept, the verdict.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from tests.make_runs import make_run, save
from tests.running import run, run_suite

USAGE_ERROR = pytest.ExitCode.USAGE_ERROR
# Each fault as it is typed, and what is said of it.
FAULTS = {
    "no such baseline": (["--perf-fail-on", "nobody"], "no baseline is called 'nobody'"),
    "an option": (["--perf-rounds", "0"], "--perf-rounds: 0 is too few"),
    "a file without a case": (["perf_tests/test_accuracy.py"], "test_accuracy.py: no case of it is selected"),
    "the time limit": (["--perf-timeout", "soon"], "--perf-timeout: 'soon' is no whole number of seconds"),
    "the wait": (["--perf-wait", "long"], "--perf-wait: 'long' is no whole number of minutes"),
    "another plugin": (["-p", "tests.plugins.repeated_cases"], "selected 2 times, and a run has each case once"),
    "speech": (["--perf-dataset", "SPEECH"], "SPEECH: "),
    "another machine's baseline": (["--perf-fail-on", "elsewhere"], "made on an unlike machine: "),
    "somebody else measures": ([], "another run measures on this machine's CPU"),
    "the storage": (["--benchmark-storage", "file://STORAGE/runs"], "--benchmark-storage: cannot write to "),
    "nothing to resume": (["--perf-resume"], "--perf-resume: no interrupted run in "),
}


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], list[str]]:
    """Makes the faults that no argument makes, and gives arguments the test's own paths."""
    speech, storage = tmp_path / "speech", tmp_path / "storage"
    speech.mkdir()
    (speech / "clip.wav").write_text("no sound")
    storage.write_text("in the way")
    monkeypatch.setenv("PERF_STORE", str(tmp_path / "store"))
    save(make_run(), tmp_path / "store" / "baselines" / "elsewhere.json")
    monkeypatch.setenv("PERF_LOCKS", str(tmp_path / "locks"))
    (tmp_path / "locks").mkdir()
    return lambda words: [word.replace("SPEECH", str(speech)).replace("STORAGE", str(storage)) for word in words]


@pytest.mark.parametrize("first", range(len(FAULTS)), ids=[*FAULTS])
def test_the_soonest_fault_is_told(first: int, typed: Callable[[list[str]], list[str]], tmp_path: Path) -> None:
    names = [*FAULTS][first:]
    if "no such baseline" in names:
        names.remove("another machine's baseline")  # one option
    arguments = typed([argument for name in names for argument in FAULTS[name][0]])
    (expected,) = typed([FAULTS[names[0]][1]])
    if not any(argument.startswith("perf_tests") for argument in arguments):
        arguments.insert(0, "perf_tests")
    lock = filelock.FileLock(tmp_path / "locks" / "cpu.lock")
    if "somebody else measures" in names:
        lock.acquire()
    result = run([sys.executable, "-m", "pytest", "--perf-device", "cpu", "-p", "no:cacheprovider", *arguments])
    lock.release()
    assert result.returncode == USAGE_ERROR
    assert expected in result.stdout + result.stderr
    assert not [*tmp_path.rglob("journal_*")]


def test_a_sessions_lines_come_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERF_STORE", str(tmp_path / "store"))
    options = ["--perf-device", "cpu", "--perf-dataset", "synthetic", "--perf-implementation", "original"]
    options += ["--perf-checkpoint", "tiny.en", "--perf-decoder-layers", "2", "--perf-counters-only"]
    baseline = tmp_path / "store" / "baselines" / "main.json"
    baseline.parent.mkdir(parents=True)
    lines: list[str] = []
    for arguments in (
        [f"--benchmark-json={baseline}"],
        ["--perf-fail-on", "main", f"--benchmark-json={tmp_path}/a.json"],
    ):
        result = run_suite(*options, *arguments, plugins=("small_checkpoints",))
        assert result.returncode == 0, result.stdout + result.stderr
        lines = result.stdout.splitlines()
    expected = ["perf: on cpu (", "perf: torch ", "perf: preset ", "[1/1] tiny.en-2-single-original: "]
    expected += ["= performance =", "= compared with main ="]
    places = [next(index for index, line in enumerate(lines) if words in line) for words in expected]
    assert places == sorted(places)
