"""A checkout of somebody else, a git that called us, a clone without all of its files: said in git's own words."""

import shutil
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from perf_tests.common.git import PLACES
from tests.running import ROOT, run, run_suite

from .conftest import Repository, commit, git

TINY = ("--perf-checkpoint", "tiny.en", "--perf-decoder-layers", "2", "--perf-device", "cpu", "--perf-rounds", "1")
TINY += ("--perf-dataset", "synthetic", "--perf-implementation", "original")


def perf_tests(folder: Path, *arguments: str, **environment: str) -> CompletedProcess[str]:
    """A command of this checkout, run in another one, which has a folder of that name too."""
    return run([sys.executable, "-P", "-m", "perf_tests", *arguments], cwd=folder, **environment)


# A checkout of another user


@pytest.mark.parametrize(
    "arguments",
    [
        ("ab", "HEAD~1", "HEAD"),
        ("calibrate",),
        ("ci", "measure", "--out", "OUT", "--base", "HEAD~1"),
        ("ci", "counters", "--out", "OUT"),
    ],
)
def test_a_checkout_of_another_user_is_told_in_gits_words(
    arguments: tuple[str, ...], repository: Repository, tmp_path: Path
) -> None:
    arguments = tuple(argument.replace("OUT", str(tmp_path / "out")) for argument in arguments)
    # git has this variable for its own tests.
    result = perf_tests(repository.root, *arguments, GIT_TEST_ASSUME_DIFFERENT_OWNER="1", HOME=str(tmp_path))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "detected dubious ownership in repository at" in line
    assert f"git config --global --add safe.directory {repository.root}" in line


def test_a_run_says_why_its_commit_is_unknown(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    environment = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1", "HOME": str(tmp_path)}
    result = run_suite(*TINY, f"--benchmark-json={tmp_path}/run.json", plugins=("small_checkpoints",), **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("perf: commit unknown: "))
    assert "detected dubious ownership" in line
    assert "safe.directory" in line


# Called by a hook, or by `rebase --exec`


def test_a_hooks_repository_is_not_this_one(repository: Repository, tmp_path: Path) -> None:
    """Git leaves where its files are to what it calls; these point to another repository."""
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    (other / "words.txt").write_text("not ours")
    commit(other, "of somebody else's")
    leaked = {
        "GIT_DIR": str(other / ".git"),
        "GIT_WORK_TREE": str(other),
        "GIT_INDEX_FILE": str(other / ".git" / "index"),
        "GIT_PREFIX": "",
    }
    assert {*leaked} <= {*PLACES}
    # The same package on both sides, so nothing is measured: the line names the package of HEAD.
    result = perf_tests(repository.root, "ab", "HEAD", "HEAD", **leaked)
    assert result.returncode == 2
    assert "the same package" in result.stderr, result.stderr
    saved = run_suite(
        *TINY,
        "--benchmark-autosave",
        f"--benchmark-storage=file://{tmp_path}/runs",
        plugins=("small_checkpoints",),
        **leaked,
    )
    assert saved.returncode == 0, saved.stdout + saved.stderr
    (path,) = (tmp_path / "runs").rglob("*.json")
    strange = git(other, "rev-parse", "HEAD")
    assert strange not in path.name
    assert strange not in path.read_text()
    if (ROOT / ".git").exists():
        assert git(ROOT, "rev-parse", "HEAD") in path.name


# Files that were never fetched


@pytest.mark.parametrize("filtered", ["blob:none", "tree:0"])
def test_a_partial_clone_whose_remote_is_away(filtered: str, repository: Repository, tmp_path: Path) -> None:
    git(repository.root, "config", "uploadpack.allowFilter", "true")
    clone = tmp_path / "partial"
    git(tmp_path, "clone", "--quiet", f"--filter={filtered}", repository.root.as_uri(), str(clone))
    away = repository.root.rename(tmp_path / "away")
    result = perf_tests(clone, "ab", repository.base, repository.head)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"{repository.base}: git " in line
    assert "has no " not in line
    assert "promisor" in line or "does not appear to be a git repository" in line, line
    shutil.move(away, repository.root)  # the remote is back, and what is missing comes by itself
    assert "git " not in perf_tests(clone, "ab", repository.base, repository.base).stderr.replace("git archive", "git")


def test_a_shallow_clone_says_what_to_fetch(repository: Repository, tmp_path: Path) -> None:
    clone = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth", "1", repository.root.as_uri(), str(clone))
    result = perf_tests(clone, "ab", repository.base, repository.head)
    assert result.returncode == 2
    assert f"{repository.base}: no such commit; the clone is shallow: fetch the whole history" in result.stderr
    assert "git fetch --unshallow" in result.stderr


def test_a_commit_without_the_package_is_no_fault_of_git(repository: Repository) -> None:
    git(repository.root, "rm", "-r", "--quiet", "whisper_flash_attention")
    bare = commit(repository.root, "no package")
    result = perf_tests(repository.root, "ab", repository.base, bare)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "perf_tests ab: " in result.stderr
    assert "has no whisper_flash_attention/" in result.stderr or "no whisper_flash_attention/ there" in result.stderr
