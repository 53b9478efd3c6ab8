"""The trees of both sides: whose package, whose suite."""

from pathlib import Path

import pytest

from perf_tests.ab.trees import check_packages, digest_of, find_repository, find_revision, make_sides
from perf_tests.common.errors import BadInputError
from perf_tests.common.package_hash import PACKAGE, SamePackageError

from .conftest import Repository, commit, git

LIBRARY = f"{PACKAGE}/_cpu_library.so"
# Stands for the compiler: the library is what the source says.
BUILD = """
from pathlib import Path
folder = Path(__file__).parent
(folder.parent / "_cpu_library.so").write_text((folder / "step.cpp").read_text())
"""


def add_compiled_step(repository: Repository, build: str = BUILD) -> str:
    repository.write(f"{PACKAGE}/csrc/build.py", build)
    repository.write(f"{PACKAGE}/csrc/step.cpp", "int step = 1;\n")
    repository.write(".gitignore", f"/.perf_runs/\n/{LIBRARY}\n")
    return commit(repository.root, "compiled step")


def read(tree: Path) -> tuple[str, str]:
    return (tree / PACKAGE / "__init__.py").read_text(), (tree / "perf_tests" / "__init__.py").read_text()


def test_each_side_has_its_own_package_and_heads_suite(repository: Repository, tmp_path: Path) -> None:
    revisions = [find_revision(repository.root, asked) for asked in (repository.base, repository.head)]
    base, head = make_sides(repository.root, *revisions, tmp_path / "trees")
    assert read(base.tree) == ("version = 1\n", "suite = 2\n")
    assert read(head.tree) == ("version = 2\n", "suite = 2\n")
    assert (base.tree / PACKAGE / "old.py").exists()
    assert not (head.tree / PACKAGE / "old.py").exists()
    assert base.package_hash != head.package_hash


def test_a_package_is_the_same_where_only_other_files_differ(repository: Repository, tmp_path: Path) -> None:
    repository.write("README.md", "words\n")
    third = commit(repository.root, "words")
    revisions = [find_revision(repository.root, asked) for asked in (repository.head, third)]
    base, head = make_sides(repository.root, *revisions, tmp_path / "trees")
    assert base.package_hash == head.package_hash
    with pytest.raises(SamePackageError, match=head.package_hash):
        check_packages(repository.root, *revisions)


def test_packages_are_told_apart_by_their_sources(repository: Repository) -> None:
    head, tree = (find_revision(repository.root, asked) for asked in (repository.head, "."))
    repository.write(f"{PACKAGE}/words.txt", "no code\n")
    with pytest.raises(SamePackageError):
        check_packages(repository.root, head, tree)
    repository.write(f"{PACKAGE}/new.py", "")
    check_packages(repository.root, head, tree)


def test_each_side_is_measured_with_its_own_library(repository: Repository, tmp_path: Path) -> None:
    first = add_compiled_step(repository)
    repository.write(LIBRARY, "another build's")
    repository.write(f"{PACKAGE}/csrc/step.cpp", "int step = 2;\n")
    revisions = [find_revision(repository.root, asked) for asked in (first, ".")]
    base, head = make_sides(repository.root, *revisions, tmp_path / "trees")
    assert base.package_hash != head.package_hash
    assert (base.tree / LIBRARY).read_text() == "int step = 1;\n"
    assert (head.tree / LIBRARY).read_text() == "int step = 2;\n"
    assert (repository.root / LIBRARY).read_text() == "another build's"


def test_a_side_from_before_the_compiled_step_is_left_alone(
    repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    revisions = [find_revision(repository.root, asked) for asked in (repository.head, add_compiled_step(repository))]
    base, head = make_sides(repository.root, *revisions, tmp_path / "trees")
    assert not (base.tree / LIBRARY).exists()
    assert (head.tree / LIBRARY).exists()
    assert capsys.readouterr().err == ""


def test_a_library_that_cannot_be_built_is_said(
    repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = add_compiled_step(repository, 'raise SystemExit("no C++ compiler\\x1b[31m: install one")')
    revisions = [find_revision(repository.root, asked) for asked in (repository.head, broken)]
    _, head = make_sides(repository.root, *revisions, tmp_path / "trees")
    assert head.package_hash
    line = "head: measured without the compiled code: no C++ compiler\\x1b[31m: install one\n"
    assert capsys.readouterr().err == line


def test_the_working_tree_is_taken_as_it_is(repository: Repository, tmp_path: Path) -> None:
    repository.write(f"{PACKAGE}/__init__.py", "version = 3\n")
    repository.write(f"{PACKAGE}/new.py", "")
    repository.write(f"{PACKAGE}/ignored", "")
    repository.write("perf_tests/__init__.py", "suite = 3\n")
    (repository.root / ".gitignore").unlink()
    git(repository.root, "checkout", ".gitignore")
    revisions = [find_revision(repository.root, asked) for asked in (repository.head, ".")]
    assert revisions[1].dirty
    base, head = make_sides(repository.root, *revisions, tmp_path / "trees")
    assert read(base.tree) == ("version = 2\n", "suite = 3\n")
    assert read(head.tree) == ("version = 3\n", "suite = 3\n")
    assert (head.tree / PACKAGE / "new.py").exists()
    assert not (head.tree / PACKAGE / "ignored").exists()


def test_a_clean_working_tree_is_its_commit(repository: Repository) -> None:
    revision = find_revision(repository.root, ".")
    assert (revision.commit, revision.dirty) == (repository.head, False)


def test_the_working_trees_digest_follows_its_files(repository: Repository) -> None:
    before = digest_of(repository.root, find_revision(repository.root, "."))
    repository.write(f"{PACKAGE}/__init__.py", "version = 3\n")
    assert digest_of(repository.root, find_revision(repository.root, ".")) != before


def test_git_knows_of_no_worktree(repository: Repository, tmp_path: Path) -> None:
    revisions = [find_revision(repository.root, asked) for asked in (repository.base, repository.head)]
    make_sides(repository.root, *revisions, tmp_path / "trees")
    assert len(git(repository.root, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize("asked", ["nothing", "--all", "", "HEAD:perf_tests"])
def test_what_is_no_commit_is_refused(repository: Repository, asked: str) -> None:
    with pytest.raises(BadInputError, match="no such commit"):
        find_revision(repository.root, asked)


def test_a_revision_without_the_package_is_refused(repository: Repository, tmp_path: Path) -> None:
    git(repository.root, "rm", "-r", "--quiet", PACKAGE)
    bare = commit(repository.root, "no package")
    revisions = [find_revision(repository.root, asked) for asked in (bare, repository.head)]
    with pytest.raises(BadInputError, match=f"has no {PACKAGE}/"):
        make_sides(repository.root, *revisions, tmp_path / "trees")


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    for look in (find_repository, lambda folder: find_revision(folder, "HEAD")):
        with pytest.raises(BadInputError, match="git rev-parse: fatal: not a git repository"):
            look(tmp_path)


def test_a_checkout_of_another_user_is_refused_in_gits_words(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(BadInputError, match=r"dubious ownership .* safe\.directory"):
        find_revision(repository.root, repository.head)


def test_another_projects_checkout_is_refused(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    with pytest.raises(BadInputError, match="run this from a checkout of the project"):
        find_repository(tmp_path)
