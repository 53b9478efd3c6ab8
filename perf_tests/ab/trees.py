"""The trees that the processes of ``ab`` run in.

A suite that runs from HEAD's tree imports HEAD's package, whatever PYTHONPATH says. So each side has a tree of its own:
that side's ``whisper_flash_attention/``, with its compiled step built there, and, in both, HEAD's suite and everything
else. They are plain folders: git is only asked for their content, and knows nothing of them that could be left behind.
"""

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from perf_tests.common.cli import tell
from perf_tests.common.errors import BadInputError
from perf_tests.common.git import find_commit, run_git, what_to_do
from perf_tests.common.package_hash import PACKAGE, SamePackageError, hash_files, hash_package
from perf_tests.common.text import clean

WORKING_TREE = "."
BUILD = Path(PACKAGE, "csrc", "build.py")


class Revision(NamedTuple):
    """What the user asked for: a commit, or the working tree as it is (``dirty`` where it is not its commit)."""

    asked: str
    commit: str | None
    dirty: bool
    working_tree: bool

    def __str__(self) -> str:
        name = self.commit[:10] if self.commit else "no commit"
        return f"{name} with uncommitted changes" if self.dirty else name


class Side(NamedTuple):
    """One side's tree, and the hash of the package in it."""

    name: str
    revision: Revision
    tree: Path
    package_hash: str


def find_repository(start: Path) -> Path:
    """The checkout around ``start``.

    Raises:
        BadInputError: there is none, or it is no checkout of this project.
    """
    root = Path(run_git(start, "rev-parse", "--show-toplevel").decode().strip())
    for part in ("perf_tests", PACKAGE):
        if not (root / part).is_dir():
            raise BadInputError(f"{clean(root)}: no {part}/ there; run this from a checkout of the project")
    return root


def find_revision(repository: Path, asked: str) -> Revision:
    """The commit that ``asked`` means; ``.`` is the working tree.

    Raises:
        BadInputError: git knows no such commit, or does not work here.
    """
    if asked == WORKING_TREE:
        dirty = bool(run_git(repository, "status", "--porcelain").strip())
        return Revision(asked, find_commit(repository, "HEAD"), dirty, working_tree=True)
    commit = find_commit(repository, asked)
    if commit is None:
        advice = what_to_do(repository, "give a commit, a branch, a tag, or '.' for this tree")
        raise BadInputError(f"{clean(asked)}: no such commit; {advice}")
    return Revision(asked, commit, dirty=False, working_tree=False)


def check_packages(repository: Path, base: Revision, head: Revision) -> None:
    """Refuse two revisions with one package, before anything is built or measured.

    Raises:
        SamePackageError: they are.
        BadInputError: a revision has no package.
    """
    hashes = set()
    for revision in (base, head):
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder), repository, revision, PACKAGE)
            hashes.add(hash_package(Path(folder, PACKAGE)))
    if len(hashes) == 1:
        raise SamePackageError(hashes.pop())


def make_sides(repository: Path, base: Revision, head: Revision, folder: Path) -> tuple[Side, Side]:
    """Make both trees below ``folder``, anew; say which package's compiled step could not be built.

    Raises:
        BadInputError: a revision has no package.
    """
    sides = []
    for name, revision in (("base", base), ("head", head)):
        tree = folder / name
        if tree.exists():
            shutil.rmtree(tree)
        fill(tree, repository, head)
        if revision is not head:
            shutil.rmtree(tree / PACKAGE, ignore_errors=True)
            fill(tree, repository, revision, PACKAGE)
        if not (tree / PACKAGE / "__init__.py").is_file():
            raise BadInputError(f"{clean(revision.asked)}: has no {PACKAGE}/")
        problem = build(tree)
        if problem is not None:
            tell(name, f"measured without the compiled code: {problem}")
        sides.append(Side(name, revision, tree, hash_package(tree / PACKAGE)))
    return sides[0], sides[1]


def fill(tree: Path, repository: Path, revision: Revision, part: str = ".") -> None:
    """Put ``revision``'s files into ``tree``, or those below ``part`` alone."""
    tree.mkdir(parents=True, exist_ok=True)
    if not revision.working_tree:
        commit = str(revision.commit)
        try:
            there = part == "." or run_git(repository, "ls-tree", commit, "--", part)
            archive = run_git(repository, "archive", "--format=tar", commit, "--", part) if there else b""
        except BadInputError as error:
            raise BadInputError(
                f"{clean(revision.asked)}: {error}; where its files were never fetched (a partial clone), fetch them"
                " while the remote can be reached"
            ) from None
        if not there:
            raise BadInputError(f"{clean(revision.asked)}: has no {part}/")
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            # Python has filters from 3.11.4 on; before, what git wrote is taken as it is.
            files.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
            files.extractall(tree)
        return
    for source in list_files(repository, part):
        if source.is_symlink() or source.is_file():
            target = tree / source.relative_to(repository)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def build(tree: Path) -> str | None:
    """Build the compiled step of the package in ``tree`` by its own script, if it has one; what went wrong, as a line.

    A process of the suite builds nothing, and would measure what serves where the library is missing.
    """
    if not (tree / BUILD).is_file():
        return None
    command = [sys.executable, str(BUILD)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines() or [f"{BUILD} ended with {done.returncode}"]
    return clean(lines[-1])


def digest_of(repository: Path, revision: Revision) -> str:
    """What tells a revision's content: its commit, or a hash of the working tree's files."""
    if not revision.working_tree:
        return str(revision.commit)
    return hash_files(repository, filter(Path.is_file, list_files(repository)))


def list_files(repository: Path, part: str = ".") -> list[Path]:
    """The working tree's files below ``part`` that git tracks or would: some may have been deleted."""
    listed = run_git(repository, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", part)
    return [repository / name for name in listed.decode(errors="surrogateescape").split("\0") if name]
