"""Which commit the job compares with."""

import subprocess
from pathlib import Path

import pytest

from perf_tests.ci.revisions import choose_base
from perf_tests.plan import BadInputError

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
    change = commits["change"]
    assert choose_base("main", change, fork_point=True) == commits["second"]  # a pull request
    assert choose_base(commits["main"], change, fork_point=False) == commits["main"]  # by hand
    assert choose_base(ZEROS, change, fork_point=False) == commits["second"]  # a push of a new branch
    assert choose_base("", "HEAD", fork_point=False) == commits["second"]  # every night
    assert choose_base("HEAD~1", ".", fork_point=False) == commits["second"]


def test_a_first_commit_is_compared_with_itself(commits: dict[str, str]) -> None:
    assert choose_base(ZEROS, commits["first"], fork_point=False) == commits["first"]


@pytest.mark.parametrize("hostile", ["--upload-pack=x", "$(touch x)", "nothing", "a b", "main; ls", "\n", "é"])
def test_what_is_no_commit_is_refused(hostile: str, commits: dict[str, str]) -> None:
    with pytest.raises(BadInputError, match="no such commit here"):
        choose_base(hostile, "HEAD", fork_point=False)


def test_no_git_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadInputError, match="git: No such file"):
        choose_base("main", "HEAD", fork_point=False)
