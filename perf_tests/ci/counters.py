"""The exact counters of two commits, which any machine can compare: it times nothing."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from perf_tests.ab.process import Job, measure
from perf_tests.ab.session import describe_commit
from perf_tests.ab.trees import Side, find_repository, find_revision, make_sides
from perf_tests.common.files import write_file

ARGUMENTS = ("--perf-counters-only", "--perf-device=cpu")


def count_sides(base: str, head: str, out: Path, arguments: Sequence[str]) -> None:
    """Count the cases of both commits with HEAD's suite; leave ``base.json`` and ``head.json`` in ``out``.

    Raises:
        BadInputError: a commit has no package, or a process ended without a run.
    """
    repository = find_repository(Path.cwd())
    trees = out.resolve() / "trees"
    try:
        for side in make_sides(repository, find_revision(repository, base), find_revision(repository, head), trees):
            _count(side, out.resolve() / f"{side.name}.json", arguments)
    finally:
        shutil.rmtree(trees, ignore_errors=True)


def _count(side: Side, path: Path, arguments: Sequence[str]) -> None:
    run = measure(Job(side.tree, path, arguments=[*ARGUMENTS, *arguments]))
    document = {**run.document, "commit_info": describe_commit(side)}
    write_file(path, (json.dumps(document, indent=4) + "\n").encode())
