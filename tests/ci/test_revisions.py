"""Which commit the job compares with."""

import subprocess
from pathlib import Path

import pytest

from perf_tests.ci.revisions import Base, choose_base
from perf_tests.common.errors import BadInputError

ZEROS = 40 * "0"


@pytest.fixture
def commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A repository: two commits of long ago, then `main` and `change` each with one more of today."""
    monkeypatch.chdir(tmp_path)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "somebody@localhost")
    git("init", "--quiet", "--initial-branch=main")
    found = {}
    for name in ("first", "second"):
        monkeypatch.setenv("GIT_COMMITTER_DATE", "2020-01-01T00:00:00Z")
        found[name] = commit(name)
    monkeypatch.delenv("GIT_COMMITTER_DATE")
    git("switch", "--quiet", "--create", "change")
    found["change"] = commit("change")
    git("switch", "--quiet", "main")
    found["main"] = commit("main")
    return found


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def commit(message: str) -> str:
    git("-c", "commit.gpgsign=false", "commit", "--quiet", "--allow-empty", "--message", message)
    return git("rev-parse", "HEAD")


def test_the_base_of_each_event(commits: dict[str, str]) -> None:
    change, second = commits["change"], commits["second"]
    said = f"BASE is {second[:10]}, "
    pull_request = choose_base("main", change, fork_point=True)
    assert pull_request == Base(second, f"{said}where HEAD left main")
    new_branch = choose_base(ZEROS, change, fork_point=False)
    assert new_branch == Base(second, f"{said}HEAD's parent: the branch is new")
    nightly = choose_base("", "HEAD", fork_point=False)
    assert nightly == Base(second, f"{said}what HEAD's branch was a day ago")


def test_a_base_that_is_what_was_asked_for_needs_no_word(commits: dict[str, str]) -> None:
    assert choose_base(commits["main"], commits["change"], fork_point=False) == Base(commits["main"])
    assert choose_base("HEAD~1", ".", fork_point=False) == Base(commits["second"])
    assert choose_base("HEAD~1", "HEAD", fork_point=True) == Base(commits["second"])


def test_a_branch_at_rest_was_a_day_ago_what_it_is(commits: dict[str, str]) -> None:
    """That nothing has changed shows in the packages, and the working tree may differ."""
    assert choose_base("", commits["second"], fork_point=False).commit == commits["second"]


def test_no_commit_is_its_own_parent(commits: dict[str, str]) -> None:
    with pytest.raises(BadInputError, match="HEAD has no parent here; give --base"):
        choose_base(ZEROS, commits["first"], fork_point=False)


def test_a_young_history_has_no_base(monkeypatch: pytest.MonkeyPatch, commits: dict[str, str]) -> None:
    git("checkout", "--quiet", "--orphan", "young")
    commit("today")
    with pytest.raises(BadInputError, match="no commit here is older than a day; give --base"):
        choose_base("", "HEAD", fork_point=False)


def clone(folder: Path, depth: int) -> Path:
    git("clone", "--quiet", "--depth", str(depth), "--branch", "main", Path.cwd().as_uri(), str(folder))
    return folder


@pytest.mark.parametrize(
    ("given", "depth", "words"),
    [("", 1, "no commit here is older than a day"), ("", 2, "no commit here is older"), (ZEROS, 1, "no parent here")],
)
def test_a_shallow_clone_that_lacks_the_base_is_refused(
    given: str, depth: int, words: str, commits: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit("another of today")
    monkeypatch.chdir(clone(tmp_path / "shallow", depth))
    with pytest.raises(BadInputError, match=rf"{words}.*; the clone is shallow.*fetch-depth: 0"):
        choose_base(given, "HEAD", fork_point=False)


def test_a_shallow_clone_that_has_the_base_will_do(
    commits: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone(tmp_path / "shallow", 2))
    assert choose_base("", "HEAD", fork_point=False).commit == commits["second"]
    assert choose_base(ZEROS, "HEAD", fork_point=False).commit == commits["second"]


def test_unrelated_histories_have_no_fork_point(commits: dict[str, str]) -> None:
    git("checkout", "--quiet", "--orphan", "other")
    commit("of its own")
    with pytest.raises(BadInputError, match="main and HEAD have no commit in common"):
        choose_base("main", "HEAD", fork_point=True)


def test_a_checkout_of_another_user_is_refused_in_gits_words(
    commits: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(BadInputError, match=r"dubious ownership .* safe\.directory"):
        choose_base("main", "HEAD", fork_point=False)


def test_a_folder_that_is_no_checkout_is_refused_in_gits_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match="git rev-parse: fatal: not a git repository"):
        choose_base("main", "HEAD", fork_point=False)


@pytest.mark.parametrize("hostile", ["--upload-pack=x", "$(touch x)", "nothing", "a b", "main; ls", "\n", "é"])
def test_what_is_no_commit_is_refused(hostile: str, commits: dict[str, str]) -> None:
    with pytest.raises(BadInputError, match="no such commit here"):
        choose_base(hostile, "HEAD", fork_point=False)


def test_no_git_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadInputError, match="git is not installed"):
        choose_base("main", "HEAD", fork_point=False)
