"""`results/run_on_gpu.sh`: its steps, over a Python that only pretends to measure."""

import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "results" / "run_on_gpu.sh"
# Measures nothing: `single` takes for ever and `batched` dies, until they are resumed; `test_cuda.py` fails.
PYTHON = """#!/bin/bash
arguments="$*"
storage=${arguments##*file://} storage=${storage%% *} json=${arguments##*--benchmark-json } json=${json%% *}
echo "$arguments" >>"$CALLS"
case "$arguments" in
*test_cuda.py*) echo "1 failed" && exit 1 ;;
*"pytest perf_tests"*)
    mkdir -p "$storage" && rm -f "$storage"/journal_*
    [[ "$arguments" != *--perf-resume* ]] && touch "$storage/journal_1.jsonl"
    case "$arguments" in
    *--perf-resume*) ;;
    */single.json*) trap 'exit 2' INT && touch "$CALLS.begun" && sleep 60 & wait ;;
    */batched.json*) kill -KILL $$ ;;
    esac
    rm -f "$storage"/journal_* && echo "{}" >"$json" && echo "2 passed" ;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """The file that lists what Python was called with."""
    if shutil.which("timeout") is None:
        pytest.skip("no timeout of coreutils here, as Linux has it")
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path / "calls"


def start(calls: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    paths = f"{calls.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        cwd=calls.parent,
        env=os.environ | {"PATH": paths, "CALLS": str(calls)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def run(calls: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    process = start(calls, *arguments, **environment)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def codes(calls: Path) -> dict[str, str]:
    return {path.stem: path.read_text().strip() for path in (calls.parent / "out").glob("*.code")}


def test_a_step_that_is_cut_short_goes_on_and_the_others_run(calls: Path) -> None:
    code, output = run(calls, "out", PERF_GPU_STEP_SECONDS="1")
    assert code == 1, output
    done = dict.fromkeys(("environment", "batched", "again", "kernels", "eager", "components", "peers"), "0")
    assert codes(calls) == done | {"tests": "1", "single": "124"}
    assert (calls.parent / "out" / "batched.json").exists()  # the process died, and another one went on
    assert not (calls.parent / "out" / "single.json").exists()

    calls.unlink()
    code, output = run(calls, "out")
    assert code == 1
    assert "tests: failed before (1), see tests.log; name it to run it again" in output
    assert codes(calls) == done | {"tests": "1", "single": "0"}
    (measured,) = [line for line in calls.read_text().splitlines() if "perf_tests" in line]
    assert "--perf-resume" in measured

    assert run(calls, "out", "tests", "single")[0] == 1
    assert calls.read_text().splitlines()[-1].count("test_cuda.py") == 1


def test_ctrl_c_ends_the_step_and_begins_no_other(calls: Path) -> None:
    process = start(calls, "out", "single", "eager")
    while not Path(f"{calls}.begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert codes(calls) == {"single": "130"}
    assert "eager: not begun, interrupted; the same command goes on" in output


def test_when_the_time_is_over_no_step_begins(calls: Path) -> None:
    code, output = run(calls, "out", "eager", PERF_GPU_SECONDS="0")
    assert code == 1
    assert "eager: not begun, no time is left" in output


def test_a_step_that_there_is_not_is_refused(calls: Path) -> None:
    code, output = run(calls, "out", "everything")
    assert (code, output.splitlines()[-1].partition(";")[0]) == (2, "run_on_gpu.sh: no step everything")
    assert not calls.exists()
