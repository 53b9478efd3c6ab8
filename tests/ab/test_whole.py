"""`ab` with real processes: two commits of this project, one of them with an operator too many."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from perf_tests.ab.trees import Revision, fill
from perf_tests.runs.saved import read_run
from tests.running import ROOT, run

from .conftest import commit, git

CASE = "test_generate[tiny.en-2-single-flash]"
STEP = "whisper_flash_attention/choosing.py"
SMALL = ("-p", "tests.plugins.small_checkpoints", "--perf-checkpoint", "tiny.en", "--perf-decoder-layers", "2")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """This tree as a repository of its own."""
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("the tests' own tree is no checkout")
    tree = tmp_path / "checkout"
    fill(tree, ROOT, Revision(".", None, dirty=True, working_tree=True))
    git(tree, "init", "--quiet")
    commit(tree, "base")
    return tree


@pytest.mark.slow
def test_one_operator_more_is_found(checkout: Path, tmp_path: Path) -> None:
    """That a comment is not: `tests/ci/test_job.py`."""
    base = git(checkout, "rev-parse", "HEAD")
    step = checkout / STEP
    marker = "        scores = logits.float()"
    source = step.read_text()
    assert marker in source
    step.write_text(source.replace(marker, f"        torch.zeros(1)\n{marker}", 1))
    slower = commit(checkout, "an operator too many")
    report = tmp_path / "report.json"
    arguments = ["--processes", "2", "--only", "counters", "--only", "memory", "--json", str(report), "--"]
    command = [sys.executable, "-m", "perf_tests", "ab", base, slower, *arguments, *SMALL, "--perf-rounds", "2"]
    done = run(command, cwd=checkout, PYTHONPATH=str(checkout))
    assert done.returncode == 1, done.stdout + done.stderr
    assert json.loads(report.read_text())["verdict"] == "REGRESSED"
    assert not list(checkout.glob(".perf_runs/*/trees"))
    assert git(checkout, "status", "--porcelain") == ""
    assert len(git(checkout, "worktree", "list").splitlines()) == 1
    (saved,) = (read_run(path) for path in checkout.glob(".perf_runs/*/head.json"))
    assert saved.commit == slower
    assert saved.records[CASE].process_rounds == (2, 2)
