"""Trees without git or with an odd one, and an xFormers that does not work: the suite runs, and says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perf_tests.machine import describe
from tests.running import ROOT, read_run, run
from tests.whole_runs import validate_run

from .test_breakage import run_broken
from .test_run import SMALL

# No git, odd git


def measure_in(tree: Path, **environment: str) -> dict:
    command = [sys.executable, "-m", "pytest", "perf_tests", "-p", "no:cacheprovider"]
    command += ["-p", "tests.plugins.small_checkpoints", *SMALL, "--perf-rounds", "1"]
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
    assert describe.find_xformers("cpu") == describe.XFormers(None, None)

    class Ops:
        attention = sys

    monkeypatch.setattr("whisper_flash_attention.xformers_backend.load", lambda device: Ops)
    monkeypatch.setattr(describe, "version_of", {"sys": "1.2", "xformers": "0.0.35"}.get)
    assert describe.find_xformers.__wrapped__("cuda:1").version == "sys 1.2"
    monkeypatch.setattr(sys, "__name__", "xformers.ops")
    assert describe.find_xformers.__wrapped__("cuda").version == "0.0.35"


# How threads wait


@pytest.mark.parametrize(
    ("given", "torch_is_there", "waiting"),
    [
        ({}, False, "GOMP_SPINCOUNT=1000"),
        ({"OMP_WAIT_POLICY": "active"}, False, "OMP_WAIT_POLICY=active"),
        ({"GOMP_SPINCOUNT": "0"}, False, "GOMP_SPINCOUNT=0"),
        ({}, True, None),  # too late: libgomp has read its variables
    ],
)
def test_threads_sleep_soon_unless_told_otherwise(
    given: dict[str, str], torch_is_there: bool, waiting: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "environ", {key: os.environ[key] for key in os.environ if key not in describe.WAITING} | given
    )
    modules = {key: module for key, module in sys.modules.items() if key != "torch"}
    monkeypatch.setattr(describe.sys, "modules", modules | ({"torch": sys} if torch_is_there else {}))
    describe.let_threads_sleep()
    assert describe.describe_waiting() == waiting
