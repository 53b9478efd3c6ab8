"""Reading a saved run, and refusing one that cannot be judged. Only what the gate uses is looked at and checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from perf_tests.common.errors import BadInputError
from perf_tests.common.text import clean, count_of

from .document import Unreadable, mapping, parse_document, read_bytes, take_apart
from .records import Record, read_record


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


def parse_run(document: Mapping[str, Any], name: str, *, timed: bool = True) -> Run:
    """Make a ``Run`` of a JSON object that has a list of ``benchmarks``.

    Raises:
        BadInputError: what the gate needs of it is broken.
    """
    commit_info, machine_info = mapping(document.get("commit_info")), mapping(document.get("machine_info"))
    commit, date = commit_info.get("id"), document.get("datetime")
    try:
        cases = take_apart(document, strict=True)
        records = {case.id: read_record(case, machine_info, timed=timed) for case in cases}
    except Unreadable as problem:
        raise BadInputError(f"{clean(name)}: {clean(problem)}") from None
    return Run(
        name=name,
        commit=commit if isinstance(commit, str) else None,
        dirty=commit_info.get("dirty") is True,
        datetime=date if isinstance(date, str) else None,
        machine_info=machine_info,
        records=records,
        plain="perf_cases" not in document,
        document=document,
    )
