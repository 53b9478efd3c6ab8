"""Reading a saved run, and refusing one that cannot be judged. Only what the gate uses is looked at and checked."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from perf_tests.common.errors import BadInputError
from perf_tests.common.text import clean, count_of

from .records import Record, Unreadable, read_record
from .schema import OUTCOMES, PERF_CASES, SCHEMA_VERSION
from .validation import validate


class Run(NamedTuple):
    """One saved run. ``plain`` is one of pytest-benchmark without the suite's keys: uncorrected times, no more."""

    name: str
    commit: str | None
    dirty: bool
    datetime: str | None
    machine_info: Mapping[str, Any]
    records: Mapping[str, Record]
    plain: bool
    document: Mapping[str, Any]

    @property
    def package_hash(self) -> object:
        """The package that it measured; ``None`` where that is not recorded."""
        return self.machine_info.get("package_hash")

    @property
    def counted(self) -> bool:
        """Whether all that it measured was counted on purpose without timing (``--perf-counters-only``)."""
        ran = [record for record in self.records.values() if record.ran]
        return bool(ran) and all(record.counted for record in ran)

    def describe(self) -> str:
        """One line for people: ``0001_… (commit 28b7c31fc5, 2026-11-24 10:42, 12 cases)``."""
        parts = []
        if self.commit:
            parts.append(f"commit {self.commit[:10]}{' with uncommitted changes' if self.dirty else ''}")
        if self.datetime:
            parts.append(self.datetime[:16].replace("T", " "))
        parts.append(count_of(len(self.records), "case"))
        return f"{clean(self.name)} ({clean(', '.join(parts))})"


def read_run(path: Path, name: str = "", *, timed: bool = True) -> Run:
    """Read the run at ``path``; without ``timed`` its times are not looked at.

    Raises:
        BadInputError: it cannot be read or judged; one line that says why.
    """
    return parse_run(parse_document(read_bytes(path), path), name or str(path), timed=timed)


def read_bytes(path: Path) -> bytes:
    """The file's content.

    Raises:
        BadInputError: there is no such file, or it cannot be read, or it is empty.
    """
    shown = clean(path)
    try:
        if not path.exists():
            raise BadInputError(f"{shown}: there is no such file")
        if not path.is_file():
            raise BadInputError(f"{shown}: not a file")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, BadInputError):
            raise
        raise BadInputError(f"{shown}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not content.strip():
        raise BadInputError(f"{shown}: empty")
    return content


def parse_document(content: bytes, path: Path) -> Mapping[str, Any]:
    """The JSON object of a run.

    Raises:
        BadInputError: not JSON, or cut short, or JSON of another kind.
    """
    shown = clean(path)
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        text = error.doc.strip()
        cut = error.pos >= len(error.doc.rstrip()) or (text.startswith("{") and not text.endswith("}"))
        what = "JSON that is cut short" if cut else "not JSON"
        raise BadInputError(f"{shown}: {what} (line {error.lineno}: {error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{shown}: not JSON ({clean(error, 80)})") from None
    if not isinstance(document, Mapping) or not isinstance(document.get("benchmarks"), list):
        raise BadInputError(f"{shown}: JSON of another kind: a run of pytest-benchmark has a list of benchmarks")
    return document


def parse_run(document: Mapping[str, Any], name: str, *, timed: bool = True) -> Run:
    """Make a ``Run`` of a JSON object that has a list of ``benchmarks``.

    Raises:
        BadInputError: what the gate needs of it is broken.
    """
    commit_info = _mapping(document.get("commit_info"))
    commit, date = commit_info.get("id"), document.get("datetime")
    try:
        plain, records = _read_records(document, timed)
    except Unreadable as problem:
        raise BadInputError(f"{clean(name)}: {clean(problem)}") from None
    return Run(
        name=name,
        commit=commit if isinstance(commit, str) else None,
        dirty=commit_info.get("dirty") is True,
        datetime=date if isinstance(date, str) else None,
        machine_info=_mapping(document.get("machine_info")),
        records=records,
        plain=plain,
        document=document,
    )


def _read_records(document: Mapping[str, Any], timed: bool) -> tuple[bool, dict[str, Record]]:
    """Whether the run is plain, and its cases: those selected, in their order, then whatever else was measured."""
    check_format(document)
    read = partial(read_record, machine_info=_mapping(document.get("machine_info")))
    measured: dict[str, Mapping[str, Any]] = {}
    for index, bench in enumerate(document["benchmarks"]):
        if not isinstance(bench, Mapping) or not isinstance(bench.get("name"), str):
            raise Unreadable(f"benchmarks[{index}]: not a benchmark with a name")
        if bench["name"] in measured:
            raise Unreadable(f"{bench['name']}: measured twice in one run")
        measured[bench["name"]] = bench
    counted = _read_counted(document.get("perf_cases"))
    for name in counted:
        if name in measured:
            raise Unreadable(f"{name}: measured twice in one run")
    measured |= counted
    ours = {name for name, bench in measured.items() if "schema_version" in _mapping(bench.get("extra_info"))}
    for name in measured:
        if name in ours:
            check_version(measured[name]["extra_info"]["schema_version"], name)
    if "perf_cases" not in document:
        if ours:
            raise Unreadable("no perf_cases: which cases were selected is not known")
        return True, {name: read(name, "passed", None, bench, timed=timed) for name, bench in measured.items()}
    selected = _read_outcomes(document["perf_cases"])
    unlisted = [name for name in measured if name in ours and name not in selected]
    if unlisted:
        raise Unreadable(f"{unlisted[0]}: measured, but not in perf_cases")
    records = {
        name: read(name, outcome, reason, measured.get(name), timed=timed and name not in counted)._replace(
            counted=name in counted
        )
        for name, (outcome, reason) in selected.items()
    }
    for name, bench in measured.items():
        if name not in records:  # a benchmark of something else, in the same session
            records[name] = read(name, "passed", None, bench, timed=timed)
    return False, records


def _read_counted(entries: object) -> dict[str, Mapping[str, Any]]:
    """The entries of ``perf_cases`` whose cases were counted without timing, by name."""
    counted: dict[str, Mapping[str, Any]] = {}
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        if isinstance(entry, Mapping) and "extra_info" in entry:
            if "schema_version" not in _mapping(entry["extra_info"]) or not isinstance(entry.get("id"), str):
                raise Unreadable(f"perf_cases[{index}].extra_info: not a record of the suite")
            counted[entry["id"]] = entry
    return counted


def check_format(document: Mapping[str, Any]) -> None:
    """Refuse a run of version 1 of the schema by its lists: there may be no measured case in it that names the version.

    Raises:
        Unreadable: it is one.
    """
    for key in ("perf_counted", "perf_resumed"):
        if key in document:
            check_version(1, key)


def check_version(version: object, name: str) -> None:
    """Refuse another version of the schema.

    Raises:
        Unreadable: it is not this one.
    """
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise Unreadable(
            f"{name}: schema_version {version}, and only {SCHEMA_VERSION} is read here; measure that commit anew (`ab`)"
        )


def _read_outcomes(entries: object) -> dict[str, tuple[str, str | None]]:
    if not isinstance(entries, list):
        raise Unreadable("perf_cases: not a list")
    outcomes: dict[str, tuple[str, str | None]] = {}
    for index, entry in enumerate(entries):
        for problem in validate(entry, PERF_CASES, f"perf_cases[{index}]", only=False):
            raise Unreadable(problem)
        if entry["outcome"] not in OUTCOMES:
            raise Unreadable(f"perf_cases[{index}].outcome: {entry['outcome']!r} is none of {', '.join(OUTCOMES)}")
        if entry["id"] in outcomes:
            raise Unreadable(f"{entry['id']}: twice in perf_cases")
        outcomes[entry["id"]] = entry["outcome"], entry["reason"]
    return outcomes


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
