"""Which commit the job compares with."""

from pathlib import Path
from typing import NamedTuple

from perf_tests.common.errors import BadInputError
from perf_tests.common.git import find_commit, run_git, what_to_do
from perf_tests.common.text import clean

NIGHTLY = "24 hours ago"
# How every note on the base begins.
NOTE = "BASE is "


class Base(NamedTuple):
    """The commit to compare with; ``note`` says how it was chosen where that is not literally what was asked for."""

    commit: str
    note: str = ""


def choose_base(given: str, head: str, *, fork_point: bool) -> Base:
    """The commit to compare ``head`` with.

    Args:
        given: A revision; empty for what ``head``'s branch was a day ago (a nightly run), all zeros (a push of a new
            branch) for ``head``'s parent.
        head: A revision, or ``.`` for the working tree.
        fork_point: Take the commit in which ``head`` left ``given`` (a pull request), so that what others did on
            ``given`` since then counts for neither side.

    Raises:
        BadInputError: there is no such commit here.
    """
    tip = resolve("HEAD" if head == "." else head)
    if not given:
        found = _git("rev-list", "-1", f"--before={NIGHTLY}", tip)
        return _chosen(found, "what HEAD's branch was a day ago", otherwise="no commit here is older than a day")
    if not given.strip("0"):
        parent = find_commit(Path.cwd(), f"{tip}^")
        return _chosen(parent, "HEAD's parent: the branch is new", otherwise="HEAD has no parent here")
    base = resolve(given)
    if not fork_point:
        return Base(base)
    try:
        found = _git("merge-base", base, tip)
    except BadInputError:
        raise BadInputError(
            f"{clean(given)} and {clean(head)} have no commit in common; fetch the whole history"
        ) from None
    return Base(base) if found == base else _chosen(found, f"where HEAD left {clean(given, 40)}")


def resolve(revision: str) -> str:
    """The full id of a commit.

    Raises:
        BadInputError: there is none, or no git.
    """
    found = find_commit(Path.cwd(), revision)
    if found is None:
        raise BadInputError(
            f"{clean(revision, 80)!r}: no such commit here; {what_to_do(Path.cwd(), 'fetch it or give another')}"
        )
    return found


def _chosen(commit: str | None, how: str, otherwise: str = "") -> Base:
    """The base and how it was chosen.

    Raises:
        BadInputError: none was found, for the reason ``otherwise``.
    """
    if commit:
        return Base(commit, f"{NOTE}{commit[:10]}, {how}")
    raise BadInputError(f"no commit to compare with: {otherwise}; {what_to_do(Path.cwd(), 'give --base')}")


def _git(*arguments: str) -> str:
    return run_git(Path.cwd(), *arguments).decode().strip()
