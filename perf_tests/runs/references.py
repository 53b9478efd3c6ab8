"""From what people type to a saved run: a path, a number, a commit, ``latest``, a promoted name.

Nothing that a JSON holds is used as a path: candidates are the files of the storage folder, and a commit that is read
from one only says whether that file is meant.
"""

import argparse
import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from perf_tests.common.errors import BadInputError
from perf_tests.common.text import clean, count_of

from .document import in_utc, mapping
from .store import baseline_names, baseline_path, is_name

DEFAULT_STORAGE = ".benchmarks"
# pytest-benchmark's names: 0003_<commit>_<time>[_uncommitted-changes].json, or 0003_<name>.json.
_SAVED = re.compile(r"(\d{4,})_.*\.json")
_COMMIT_IN_NAME = re.compile(r"\d{4,}_([0-9a-f]{40})_")
_NUMBER = re.compile(r"\d{1,6}")
_COMMIT = re.compile(r"[0-9a-f]{4,40}")
_LATEST = re.compile(r"latest(?:~(\d{1,6}))?")
FORMS = "a path, a run's number, a commit (4 digits or more), latest, latest~1, or a promoted name"


class Located(NamedTuple):
    """A run that was found: its file, what to call it, and whether somebody chose it by more than its age."""

    path: Path
    name: str
    chosen: bool = True


class Saved(NamedTuple):
    """A file of the storage folder, with pytest-benchmark's number."""

    number: int
    path: Path


def locate(reference: str, storage: Path) -> Located:
    """Find the run that ``reference`` means.

    Raises:
        BadInputError: there is none, or more than one.
    """
    if not reference:
        raise BadInputError(f"an empty reference; give {FORMS}")
    if "/" in reference or "\\" in reference or reference.endswith(".json"):
        return Located(Path(reference), reference)
    latest = _LATEST.fullmatch(reference)
    if latest:
        back = int(latest[1] or 0)
        saved = saved_runs(storage)
        if back >= len(saved):
            raise BadInputError(f"{reference}: {count_of(len(saved), 'run')} in {clean(storage)}")
        return _located(reference, saved[-1 - back], chosen=False)
    if _NUMBER.fullmatch(reference):
        found = [run for run in saved_runs(storage) if run.number == int(reference)]
        if found:
            return _only(reference, found)
        if not _COMMIT.fullmatch(reference):
            raise BadInputError(f"{reference}: no run of such a number in {clean(storage)}")
    if _COMMIT.fullmatch(reference):
        return _by_commit(reference, storage)
    if is_name(reference):
        path = baseline_path(reference)
        if path.is_file():
            return Located(path, reference)
    if Path(reference).is_file():
        return Located(Path(reference), reference)
    names = baseline_names()
    known = f"; promoted: {', '.join(names)}" if names else ""
    raise BadInputError(f"{clean(reference, 80)}: no such run; give {FORMS}{known}")


def saved_runs(storage: Path) -> list[Saved]:
    """The runs that pytest-benchmark saved, oldest first: this kind of machine's, else all there are.

    Those of a folder are in the order of their numbers, which no clock that is set back changes; the folders of several
    machines by the time that their last runs recorded.

    Raises:
        BadInputError: there are none.
    """
    found = _runs_in(storage / _machine_folder())
    if not found:
        folders = sorted(filter(None, map(_runs_in, _folders(storage))), key=lambda runs: _read_instant(runs[-1].path))
        found = [run for runs in folders for run in runs]
    if not found:
        raise BadInputError(f"{clean(storage)}: no saved runs; make one with pytest perf_tests --benchmark-autosave")
    return found


def add_storage(parser: argparse.ArgumentParser) -> None:
    """Add ``--storage``, for a command that reads saved runs."""
    parser.add_argument(
        "--storage",
        default=DEFAULT_STORAGE,
        metavar="DIR",
        help=f"where pytest-benchmark saved the runs, as its --benchmark-storage (default: {DEFAULT_STORAGE})",
    )


def storage_path(option: str) -> Path:
    """The folder that ``--storage`` means; pytest-benchmark's ``file://`` is understood."""
    return Path(option.removeprefix("file://"))


def _machine_folder() -> str:
    """The folder that pytest-benchmark saves this kind of machine's runs in (its ``get_machine_id``)."""
    version = ".".join(platform.python_version_tuple()[:2])
    return f"{platform.system()}-{platform.python_implementation()}-{version}-{platform.architecture()[0]}"


def _folders(storage: Path) -> list[Path]:
    try:
        return [storage, *sorted(path for path in storage.iterdir() if path.is_dir())]
    except (OSError, ValueError):
        return []


def _runs_in(folder: Path) -> list[Saved]:
    """The saved runs of a folder, by number."""
    try:
        paths = [*folder.iterdir()]
    except (OSError, ValueError):
        return []
    matched = ((_SAVED.fullmatch(path.name), path) for path in paths)
    found = [Saved(int(match[1]), path) for match, path in matched if match and path.is_file()]
    return sorted(found, key=lambda run: (run.number, run.path))


def _by_commit(reference: str, storage: Path) -> Located:
    """The newest run of the commit that starts with ``reference``."""
    runs = [(commit_of(run.path), run) for run in saved_runs(storage)]
    found = [(commit, run) for commit, run in runs if commit.startswith(reference)]
    commits = sorted({commit for commit, _ in found})
    if not found:
        raise BadInputError(f"{reference}: no run of such a number or commit in {clean(storage)}")
    if len(commits) > 1:
        raise BadInputError(f"{reference}: commits {', '.join(clean(c, 12) for c in commits)}; give more of one")
    return _located(reference, found[-1][1])


def commit_of(path: Path) -> str:
    """The commit that a run was made of, from its name where that has it, else from the file; or nothing."""
    match = _COMMIT_IN_NAME.match(path.name)
    if match:
        return match[1]
    return _read_commit(path) or ""


def _read_commit(path: Path) -> str | None:
    commit = mapping(_read(path).get("commit_info")).get("id")
    return commit if isinstance(commit, str) else None


def _read_instant(path: Path) -> str:
    """When the run at ``path`` ended, as it recorded that; texts in UTC sort as what they mean."""
    recorded = _read(path).get("datetime")
    return in_utc(recorded) if isinstance(recorded, str) else ""


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return mapping(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return {}


def _only(reference: str, found: list[Saved]) -> Located:
    if len(found) > 1:
        paths = ", ".join(clean(run.path) for run in found)
        raise BadInputError(f"{reference}: {len(found)} runs have it: {paths}; give a path")
    return _located(reference, found[0])


def _located(reference: str, run: Saved, *, chosen: bool = True) -> Located:
    return Located(run.path, f"{reference}: {run.path.name}", chosen)
