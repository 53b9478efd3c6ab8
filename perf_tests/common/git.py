"""What git knows of a checkout, and its own words where it fails."""

import os
import subprocess
from pathlib import Path

from .errors import BadInputError
from .text import clean

# Where git keeps what, as hooks and `rebase --exec` have it in their environment: with these, git in any folder speaks
# of the hook's repository. The rest of `git rev-parse --local-env-vars` is configuration: a container may name its safe
# folders there.
PLACES = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_SHALLOW_FILE",
    "GIT_GRAFT_FILE",
    "GIT_PREFIX",
    "GIT_NAMESPACE",
)


def forget_caller() -> bool:
    """Take a calling git's places out of the environment of this process and its children; whether there were any."""
    found = [os.environ.pop(name, None) for name in PLACES]
    return any(place is not None for place in found)


def run_git(folder: Path, *arguments: str) -> bytes:
    """What git prints in ``folder``.

    Raises:
        BadInputError: it failed, or there is no git.
    """
    try:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise BadInputError("git is not installed, and two commits cannot be had without it") from None
    except subprocess.CalledProcessError as error:
        # All of it: behind what is wrong git says what to do.
        words = " ".join(error.stderr.decode(errors="replace").split()) or f"exit code {error.returncode}"
        raise BadInputError(f"git {arguments[0]}: {clean(words, 1000)}") from None


def find_commit(folder: Path, revision: str) -> str | None:
    """The full id of a commit; ``None`` where the repository around ``folder`` has no such commit.

    Raises:
        BadInputError: there is no repository, or git does not work in this one.
    """
    run_git(folder, "rev-parse", "--git-dir")
    try:
        found = run_git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except BadInputError:
        return None
    return found.decode().strip()


def why_no_commit(folder: Path) -> str:
    """Why the commit of the checkout around ``folder`` is not known, as git tells it."""
    try:
        run_git(folder, "rev-parse", "--verify", "HEAD")
    except BadInputError as error:
        return str(error)
    return "git was not asked, or answered late"


def what_to_do(folder: Path, otherwise: str) -> str:
    """What to do about a commit that the repository around ``folder`` lacks: ``otherwise``, unless it is shallow."""
    if run_git(folder, "rev-parse", "--is-shallow-repository").strip() == b"true":
        return "the clone is shallow: fetch the whole history (git fetch --unshallow; in CI fetch-depth: 0)"
    return otherwise
