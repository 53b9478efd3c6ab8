"""`results/run_on_gpu.sh`: its steps over a Python that only pretends to measure, and a visit in miniature."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.whole_runs import validate_run

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "results" / "run_on_gpu.sh"
# Runs the visit and the commands that read JSON; else it pretends. `test_cuda.py` fails, and $BREAK says what befalls
# the suite before it is resumed: it `hangs` or is `stubborn` until it is stopped, it `dies`, always (`again`), in a
# case (`case`), or it is of no use (`refused`).
PYTHON = f"""#!/bin/bash
arguments="$*"
case "$arguments" in *visit.py*|*"perf_tests merge"*|*"perf_tests report"*) exec {sys.executable} "$@" ;; esac
echo "$arguments" >>"$CALLS"
storage=${{arguments##*file://}} storage=${{storage%% *}} json=${{arguments##*--benchmark-json }} json=${{json%% *}}
case "$arguments" in
*test_cuda.py*) echo "1 failed"; exit 1 ;;
*"perf_tests compare"*) echo "### PASS" >"${{arguments##* }}" ;;
*measure_kernels.py*) echo "| kernels |" ;;
*describe_environment.py*) echo "{{}}" ;;
*"pytest perf_tests"*)
    [ -e "$storage/journal_resumed.jsonl" ] || cp "$JOURNAL" "$storage/journal_1.jsonl"
    touch "$CALLS.begun"
    case "$BREAK $arguments" in
    "dies again "*) kill -KILL $$ ;;
    "refused "*) echo "ERROR: --perf-resume: journal_1.jsonl is of another run: torch (a / b)"; exit 4 ;;
    *--perf-resume*) ;;
    "hangs "*) trap 'exit 2' INT; sleep 60 & wait ;;
    "stubborn "*) trap '' INT; sleep 60; sleep 60 ;;
    "dies "*) kill -KILL $$ ;;
    esac
    rm -f "$storage"/journal_*
    cp "$RUN" "$json"
    echo "2 passed" ;;
esac
"""
CASE = "test_generate[tiny.en-4-single-original]"
HEADER = {
    "journal": 3,
    "started": 1.0,
    "selected": [CASE],
    "identity": {},
    "machine_info": {"node": "here"},
    "commit_info": {},
    "pid": 1,
    "process_created": 1.0,
}
RUN: dict[str, Any] = {"machine_info": {}, "benchmarks": [], "perf_cases": [], "perf_sessions": []}


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """The file that lists what Python was called with."""
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / "journal").write_text(f"{json.dumps(HEADER)}\n{json.dumps({'begin': CASE})}\n")
    (tmp_path / "run").write_text(json.dumps(RUN))
    return tmp_path / "calls"


def start(calls: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    folder = calls.parent
    settings = {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(calls),
        "JOURNAL": str(folder / "journal"),
        "RUN": str(folder / "run"),
        "BREAK": "",
    }
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        cwd=folder,
        env=os.environ | settings | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def run(calls: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    process = start(calls, *arguments, **environment)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def steps_of(output: str) -> dict[str, str]:
    """How each step went, by its name."""
    return {line.split()[0]: line.partition(" ")[2].strip().partition("  ")[0] for line in output.splitlines()}


def suites(calls: Path) -> list[str]:
    """How the suite was called."""
    return [line for line in calls.read_text().splitlines() if "pytest perf_tests" in line]


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_a_visit_brings_home_few_files_and_goes_on_where_a_step_fails(calls: Path) -> None:
    code, output = run(calls, "out")
    assert code == 1, output
    assert steps_of(output) == dict.fromkeys(("environment", "tests", "cells", "kernels", "again"), "exit code 0") | {
        "tests": "exit code 1"
    }
    out = calls.parent / "out"
    assert sorted(path.name for path in out.rglob("*")) == sorted(
        ("environment.json", "kernels.md", "log.txt", "run.json", "tables.md")
    )
    assert "## Unchanged code, measured twice\n\n### PASS" in (out / "tables.md").read_text()
    assert "--perf-rounds single=10,batched=2" in suites(calls)[0]
    assert len(suites(calls)) == 3


def test_where_the_process_dies_another_one_goes_on(calls: Path) -> None:
    code, output = run(calls, "out", "cells", BREAK="dies")
    assert code == 0, output
    assert ["--perf-resume" in suite for suite in suites(calls)] == [False, True]
    assert not [*(calls.parent / "out").glob("journal_*")]


def test_a_process_that_gets_nowhere_is_not_begun_for_ever(calls: Path) -> None:
    code, output = run(calls, "out", "cells", BREAK="dies again")
    assert (code, steps_of(output)) == (1, {"cells": "exit code -9"})
    assert len(suites(calls)) == 2


def check_cut_short(out: Path) -> None:
    """The journal is there, and a run of what it has."""
    assert [path.name for path in out.glob("journal_*")] == ["journal_1.jsonl"]
    saved = json.loads((out / "run.json").read_text())
    assert [entry["reason"] for entry in saved["perf_cases"]] == ["not run: the session ended before it"]
    assert "not run: the session ended before it" in (out / "tables.md").read_text()


def test_when_the_time_is_over_the_step_is_cut_short_and_no_other_begins(calls: Path) -> None:
    code, output = run(calls, "out", "cells", "kernels", "--minutes", "0.6", BREAK="hangs")
    assert (code, steps_of(output)) == (1, {"cells": "cut short", "kernels": "not begun: no time is left"})
    check_cut_short(calls.parent / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_visit_that_is_interrupted_writes_up_what_it_has(number: signal.Signals, calls: Path) -> None:
    process = start(calls, "out", "cells", "kernels", BREAK="hangs")
    wait_for(Path(f"{calls}.begun").exists, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert steps_of(output) == {"cells": "cut short", "kernels": "not begun: interrupted"}
    check_cut_short(calls.parent / "out")


@pytest.mark.slow
def test_a_process_that_does_not_stop_is_ended(calls: Path) -> None:
    code, output = run(calls, "out", "cells", "--minutes", "0.6", BREAK="stubborn")
    assert (code, steps_of(output)) == (1, {"cells": "cut short"})
    assert "killed: it did not stop within 15 s" in (calls.parent / "out" / "log.txt").read_text()
    check_cut_short(calls.parent / "out")


def test_a_run_that_cannot_be_written_up_is_told(calls: Path) -> None:
    """The journal is there all the same."""
    (calls.parent / "journal").write_text("no journal\n")
    code, output = run(calls, "out", "cells", "--minutes", "0.6", BREAK="hangs")
    assert code == 1
    assert output.splitlines()[-1].startswith("merge        failed       perf_tests merge: ")
    assert [*(calls.parent / "out").glob("journal_*")]


def test_a_resumed_visit_has_the_journal_and_leaves_the_tests_out(calls: Path) -> None:
    code, output = run(calls, "out", "--resume", "journal")
    assert code == 0, output
    assert [*steps_of(output)] == ["environment", "cells", "kernels", "again"]
    assert "--perf-resume" in suites(calls)[0]
    assert (calls.parent / "journal").exists()


def test_a_journal_of_another_run_ends_the_visit(calls: Path) -> None:
    code, output = run(calls, "out", "--resume", "journal", BREAK="refused")
    assert code == 2
    assert output.splitlines()[-1] == "run_on_gpu.sh: --perf-resume: journal_1.jsonl is of another run: torch (a / b)"
    assert "measure_kernels" not in calls.read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("out", "everything"), "no step everything; there are environment, tests, cells, kernels, again"),
        (("bin",), "bin: there already; give each visit a folder of its own"),
        (("journal",), "journal: there already"),
        (("out", "--resume", "journals"), "--resume journals: no file; give a visit's journal"),
        (("out", "--minutes", "0.5"), "--minutes 0.5: too few"),
        (("out", "--minutes", "nan"), "--minutes nan: too few"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(arguments: tuple[str, ...], complaint: str, calls: Path) -> None:
    code, output = run(calls, *arguments)
    assert code == 2
    assert output.startswith(f"run_on_gpu.sh: {complaint}")
    assert len(output.splitlines()) == 1
    assert not calls.exists()


def test_wheels_that_cannot_be_unpacked_are_named(calls: Path) -> None:
    assert run(calls, "out", WHEELS="nowhere") == (2, "run_on_gpu.sh: $WHEELS: nowhere: no folder\n")


# In miniature


def entries_of(journal: Path, key: str) -> list[dict[str, Any]]:
    """The lines of a journal that have `key`, the last one left out where it is not whole yet."""
    lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
    return [entry for entry in map(json.loads, lines) if key in entry]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_visit_that_is_cut_short_is_resumed_elsewhere(tmp_path: Path) -> None:
    """Interrupted once, and its process killed once: the run is whole, each case measured once, its session named."""
    settings = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}

    def visit(*arguments: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", str(SCRIPT), *map(str, arguments), "--small", "cells"],
            env=variables | settings | {"PYTEST_ADDOPTS": "-p no:hypothesispytest"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    one, two = tmp_path / "one", tmp_path / "two"
    first = visit(one)
    wait_for(lambda: any(entries_of(path, "outcome") for path in one.glob("journal_*")), first)
    first.terminate()
    output, _ = first.communicate(timeout=120)
    assert steps_of(output) == {"cells": "cut short"}
    (journal,) = one.glob("journal_*")
    done = len(entries_of(journal, "outcome"))
    unfinished = json.loads((one / "run.json").read_text())
    assert validate_run(unfinished) == []
    assert len(unfinished["benchmarks"]) == done < 4
    assert "not run" in (one / "tables.md").read_text()
    carried = shutil.move(journal, tmp_path / "carried.jsonl")

    second = visit(two, "--resume", carried)
    resumed = two / "journal_resumed.jsonl"
    begun = len(entries_of(carried, "begin"))
    wait_for(lambda: len(entries_of(resumed, "begin")) > begun, second)
    os.kill(entries_of(resumed, "pid")[-1]["pid"], signal.SIGKILL)
    output, _ = second.communicate(timeout=600)
    assert second.returncode == 0, output + (two / "log.txt").read_text()
    assert sorted(path.name for path in two.iterdir()) == ["log.txt", "run.json", "tables.md"]
    saved = json.loads((two / "run.json").read_text())
    assert validate_run(saved) == []
    names = [f"test_generate[tiny.en-2-{s}-{i}]" for s in ("single", "batched") for i in ("original", "flash")]
    assert [bench["name"] for bench in saved["benchmarks"]] == names
    assert [entry["outcome"] for entry in saved["perf_cases"]] == ["passed"] * 4
    assert [entry["session"] for entry in saved["perf_cases"]] == [0] * done + [2] * (4 - done)
    assert [session["cases"] for session in saved["perf_sessions"]] == [done, 0, 4 - done]
    assert saved["benchmarks"][:done] == unfinished["benchmarks"]
