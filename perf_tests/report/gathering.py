"""From what people type to runs: references as the gate takes them, and folders; grouped by machine, oldest first."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from perf_tests.common.errors import BadInputError
from perf_tests.common.text import clean, count_of
from perf_tests.runs.fingerprint import digest, fingerprint_of
from perf_tests.runs.references import locate, saved_runs
from perf_tests.runs.store import baseline_names, baseline_path
from perf_tests.runs.views import RunView, view_run

from .history import HistoryRun, remember
from .rows import known_parameters

# As many runs of one machine as a page shows over time: beyond, it would be too large to open on a phone.
MOST_RUNS = 1000


class Found(NamedTuple):
    """A file that may be a run, and what to call it."""

    path: Path
    name: str


class Machine(NamedTuple):
    """The runs of one machine (one fingerprint), oldest first; ``shown`` is its newest, or HEAD of two, read whole."""

    key: str
    runs: tuple[HistoryRun, ...]
    shown: RunView


class Gathered(NamedTuple):
    """All runs of a report by machine, the machine with the newest run first.

    ``paths`` are the readable runs in the order asked for; ``notes`` say, a line each, what was left out.
    """

    machines: tuple[Machine, ...]
    paths: tuple[Found, ...]
    notes: tuple[str, ...]


def find(references: Sequence[str], storage: Path) -> list[Found]:
    """The files that ``references`` mean, each once; without references, all of the storage folder.

    Raises:
        BadInputError: there is no such run, or there are none at all.
    """
    if not references:
        if not storage.is_dir():
            saved_runs(storage)  # refuses, with what to do
        references = [str(storage)]
    found: dict[Path, Found] = {}
    for reference in references:
        for one in _find_one(reference, storage):
            found.setdefault(one.path.resolve(), one)
    return list(found.values())


def _find_one(reference: str, storage: Path) -> list[Found]:
    folder = Path(reference.removeprefix("file://"))
    if reference and folder.is_dir():
        paths = sorted(path for path in folder.rglob("*.json") if path.is_file())
        if not paths:
            raise BadInputError(f"{clean(folder)}: no saved runs; make one with pytest perf_tests --benchmark-autosave")
        return [Found(path, path.name) for path in paths]
    located = locate(reference, storage)
    return [Found(located.path, located.path.name)]


def gather(found: Sequence[Found]) -> Gathered:
    """Read all runs; what cannot be read is left out, with a note.

    Raises:
        BadInputError: not one of them can be read.
    """
    runs: list[tuple[str, HistoryRun]] = []
    paths, notes = [], []
    for one in found:
        try:
            view = view_run(one.path, one.name, known_parameters())
        except BadInputError as error:
            notes.append(str(error))
            continue
        paths.append(one)
        runs.append((digest(fingerprint_of(view.machine_info)), remember(view)))
    if not runs:
        raise BadInputError(notes[0] if len(notes) == 1 else f"none of {len(notes)} files is a run: {notes[0]}")
    names = _baselines()
    by_machine: dict[str, list[HistoryRun]] = {}
    for key, run in runs:
        name = names.get((run.commit, run.datetime))
        by_machine.setdefault(key, []).append(run._replace(baseline=name) if name else run)
    machines = []
    for key, members in by_machine.items():
        members.sort(key=lambda run: (run.datetime, run.path.name))
        if len(members) > MOST_RUNS:
            notes.append(f"of {count_of(len(members), 'run')} of one machine, the newest {MOST_RUNS} are shown")
            del members[:-MOST_RUNS]
        head = paths[1].path if len(paths) == 2 else None
        shown = next((run for run in members if run.path == head), members[-1])
        machines.append(Machine(key, tuple(members), view_run(shown.path, shown.name, known_parameters())))
    machines.sort(key=lambda machine: machine.runs[-1].datetime, reverse=True)
    return Gathered(tuple(machines), tuple(paths), tuple(notes))


def _baselines() -> Mapping[tuple[str | None, str], str]:
    """The promoted baselines' names by commit and time: a promoted run is a copy of the saved one."""
    names: dict[tuple[str | None, str], str] = {}
    for name, view in _read_baselines():
        key = (view.commit, view.datetime)
        names[key] = f"{names[key]}, {name}" if key in names else name
    return names


def _read_baselines() -> Iterable[tuple[str, RunView]]:
    for name in baseline_names():
        try:
            yield name, view_run(baseline_path(name), name, known_parameters())
        except BadInputError:
            continue  # the gate says so to whoever compares with it
