"""`--perf-fail-on NAME`: sessions of a stand-in for the suite, in processes of their own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perf_tests.gate import fail_on as plugin
from tests.make_runs import FLASH, MACHINE, ORIGINAL, info_of, make_run, save
from tests.running import run

# Machine and speech are made up too, and the header and the table, which want more of a case, are left out.
CONFTEST = f"""
from collections import defaultdict
from perf_tests.machine import describe
from perf_tests.session import speech, terminal

MACHINE = {MACHINE!r}
MACHINE["torch"] = type("TorchVersion", (str,), {{}})(MACHINE["torch"])  # as torch's is
describe.describe_machine = lambda device: MACHINE
speech.load_speech_of = lambda config, cases: None

def begin_report(config, cases, *, alone):
    config.stash[terminal.FORECAST] = defaultdict(lambda: 1.0)
    return []

terminal.begin_report, terminal.show_table = begin_report, lambda terminalreporter, config: None
"""
# Rounds take what a clock reads; the control is made up, in a fixed ratio to them.
STAND_IN = """
import json, os, pytest

@pytest.mark.parametrize("case", ["tiny.en-4-single-original", "tiny.en-4-single-flash"])
def test_generate(benchmark, case):
    benchmark.pedantic(sum, ((1, 2),), rounds=20)
    if os.environ.get("STAND_IN_FAILS") and "flash" in case:
        raise AssertionError("parity")
    info = json.loads(os.environ["STAND_IN"])[case]
    rounds = benchmark.stats.stats.data
    if info["control"]:
        info["control"]["rounds_seconds"] = [2 * seconds for seconds in rounds]
    benchmark.extra_info.update(info)
"""

Session = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Runs pytest on the stand-in."""
    folder = tmp_path / "project"
    (folder / "perf_tests").mkdir(parents=True)
    (folder / "perf_tests" / "test_generate.py").write_text(STAND_IN)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    infos = {bench["name"][14:-1]: bench["extra_info"] for bench in make_run()["benchmarks"]}

    def run_session(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "perf_tests", "-p", "perf_tests.plugin", "--perf-device", "cpu"]
        command += arguments
        return run(command, cwd=folder, **({"STAND_IN": json.dumps(infos)} | environment))

    return run_session


def make_baseline(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Promote a run whose flash takes half of its control, as the stand-in's does."""
    run = make_run()
    info_of(run)["control"]["rounds_seconds"] = [2 * s for s in run["benchmarks"][1]["stats"]["data"]]
    run["machine_info"] |= changes
    save(run, tmp_path / "store" / "baselines" / "main.json")
    return run


def test_a_timed_baseline_is_refused_where_nothing_is_timed(session: Session, tmp_path: Path) -> None:
    make_baseline(tmp_path)
    result = session("--perf-fail-on", "main", "--perf-counters-only")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--perf-fail-on main: timed, and --perf-counters-only is not" in result.stderr


def test_the_same_is_no_failure_and_the_run_is_saved(session: Session, tmp_path: Path) -> None:
    make_baseline(tmp_path)
    result = session("--perf-fail-on", "main")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "compared with main" in result.stdout
    assert "both runs measured the same package" not in result.stdout
    # The stand-in's own control is faster than the baseline's by orders of magnitude.
    assert f"AMBIGUOUS {FLASH}" in result.stdout
    (saved,) = (tmp_path / "project" / ".benchmarks").rglob("0001_*.json")
    assert json.loads(saved.read_text())["perf_cases"][1]["id"] == FLASH


def test_a_baseline_of_this_package_is_said_and_no_failure(session: Session, tmp_path: Path) -> None:
    make_baseline(tmp_path, package_hash=MACHINE["package_hash"])
    result = session("--perf-fail-on", "main")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"both runs measured the same package ({MACHINE['package_hash']})" in result.stdout


def test_growth_and_failed_cases_fail_the_session(session: Session, tmp_path: Path) -> None:
    run = make_baseline(tmp_path)
    info_of(run, ORIGINAL)["aten_op_count"] -= 1
    save(run, tmp_path / "store" / "baselines" / "main.json")
    result = session("--perf-fail-on", "main", "--benchmark-json", str(tmp_path / "run.json"), STAND_IN_FAILS="1")
    assert result.returncode == 1
    assert f"REGRESSED {ORIGINAL}" in result.stdout
    assert "aten_op_count" in result.stdout
    assert f"FAILED    {FLASH}" in result.stdout
    assert "failed in HEAD: AssertionError: parity" in result.stdout
    assert (tmp_path / "run.json").exists()


def test_refusals_before_anything_is_measured(session: Session, tmp_path: Path) -> None:
    result = session("--perf-fail-on", "main")
    assert result.returncode == 4
    assert "no baseline is called 'main'" in result.stderr
    make_baseline(tmp_path, torch="2.12.0")
    result = session("--perf-fail-on", "main")
    assert result.returncode == 4
    assert "made on an unlike machine: torch (2.12.0 / 2.13.0+cpu)" in result.stderr
    save(make_baseline(tmp_path), tmp_path / "store" / "baselines" / "main.json")
    result = session("--perf-fail-on", "main", "--benchmark-timer", "time.process_time")
    assert result.returncode == 4
    assert "main: timed by perf_counter, and this run by process_time: give the same --benchmark-timer" in result.stderr
    assert not [path for path in tmp_path.rglob("*.json*") if "baselines" not in path.parts]


def test_a_refusal_at_the_end(session: Session, tmp_path: Path) -> None:
    make_baseline(tmp_path)
    result = session("--perf-fail-on", "main", "-k", "nothing")
    assert result.returncode == 4
    assert "nothing was saved" in result.stdout


def test_a_broken_baseline_is_refused(tmp_path: Path) -> None:
    path = save({"benchmarks": 1}, tmp_path / "store" / "baselines" / "main.json")
    with pytest.raises(plugin.BadInputError, match="another kind"):
        plugin.read_gate("main")
    with pytest.raises(plugin.BadInputError, match="cannot name"):
        plugin.read_gate("../main")
    path.write_text("")
    with pytest.raises(plugin.BadInputError, match="empty"):
        plugin.read_gate("main")
