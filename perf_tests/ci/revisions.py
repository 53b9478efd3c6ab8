"""Which commit the job compares with."""

import subprocess

from perf_tests.plan import BadInputError
from perf_tests.regression.text import clean

NIGHTLY = "24 hours ago"


def choose_base(given: str, head: str, *, fork_point: bool) -> str:
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
        return _git("rev-list", "-1", f"--before={NIGHTLY}", tip) or _parent(tip)
    if not given.strip("0"):
        return _parent(tip)
    base = resolve(given)
    if not fork_point:
        return base
    found = _git("merge-base", base, tip)
    if not found:
        raise BadInputError(f"{clean(given)} and {clean(head)} have no commit in common; fetch the whole history")
    return found


def resolve(revision: str) -> str:
    """The full id of a commit.

    Raises:
        BadInputError: there is none, or no git.
    """
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if not found:
        raise BadInputError(f"{clean(revision, 80)!r}: no such commit here; fetch the whole history or give another")
    return found


def _parent(commit: str) -> str:
    return _git("rev-parse", "--verify", "--quiet", f"{commit}^") or commit


def _git(*arguments: str) -> str:
    """What git prints; nothing where it fails.

    Raises:
        BadInputError: there is no git.
    """
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BadInputError(f"git: {error.strerror}: the job compares commits and needs it") from None
    return done.stdout.strip() if done.returncode == 0 else ""
