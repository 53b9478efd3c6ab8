"""`ab` with real processes: two commits of this project, one of them with an operator too many."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from perf_tests.ab.trees import Revision, fill
from perf_tests.regression.runs import read_run
from tests.suite.runs import ROOT, run

from .conftest import commit, git

CASE = "test_generate[tiny.en-2-single-flash]"
STEP = "whisper_flash_attention/decode_step.py"
SMALL = ("-p", "tests.suite.small_checkpoints", "--perf-checkpoint", "tiny.en", "--perf-decoder-layers", "2")


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
def test_one_operator_more_is_found_and_a_word_in_the_readme_is_not(checkout: Path, tmp_path: Path) -> None:
    base = git(checkout, "rev-parse", "HEAD")
    (checkout / "README.md").write_text("Another word.\n")
    words = commit(checkout, "words")
    step = checkout / STEP
    marker = "    hidden = "
    source = step.read_text()
    assert marker in source
    step.write_text(source.replace(marker, f"    torch.zeros(1)\n{marker}", 1))
    slower = commit(checkout, "an operator too many")
    verdicts = []
    for head in (words, slower):
        report = tmp_path / f"{head}.json"
        arguments = ["--processes", "2", "--only", "counters", "--only", "memory", "--json", str(report), "--"]
        command = [sys.executable, "-m", "perf_tests", "ab", base, head, *arguments, *SMALL, "--perf-rounds", "2"]
        done = run(command, cwd=checkout, PYTHONPATH=str(checkout))
        assert done.returncode in (0, 1), done.stdout + done.stderr
        verdicts.append(json.loads(report.read_text())["verdict"])
        assert not list(checkout.glob(".perf_runs/*/trees"))
    assert verdicts == ["PASS", "REGRESSED"]
    assert git(checkout, "status", "--porcelain") == ""
    assert len(git(checkout, "worktree", "list").splitlines()) == 1
    saved = [read_run(path) for path in sorted(checkout.glob(".perf_runs/*/head.json"))]
    assert {run.commit for run in saved} == {words, slower}
    assert all(run.records[CASE].process_rounds == (2, 2) for run in saved)
