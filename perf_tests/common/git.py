"""What git knows of a checkout, and its own words where it fails."""

import subprocess
from pathlib import Path

from .errors import BadInputError
from .text import clean


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
        raise BadInputError(f"git {arguments[0]}: {clean(words)}") from None


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
