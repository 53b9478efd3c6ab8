"""The reader of a saved run's JSON: the object itself, and its cases as they stand there.

Who judges reads strictly (``saved.py``), and what is broken is refused; who shows reads leniently (``views.py``), and
what is broken is passed over. Another version of the schema is refused by both.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from perf_tests.common.errors import BadInputError
from perf_tests.common.text import clean

from .schema import OUTCOMES, PERF_CASES, SCHEMA_VERSION
from .validation import validate


class Unreadable(ValueError):  # noqa: N818  # a reason that the reader turns into a BadInputError with the run's name
    """What is wrong with a record, without the name of the run."""


class CaseDocument(NamedTuple):
    """A case as the JSON has it.

    ``bench`` is its entry of ``benchmarks``, or of ``perf_cases`` where it was ``counted`` without timing; empty where
    nothing of it was measured.
    """

    id: str
    outcome: str
    reason: str | None
    bench: Mapping[str, Any]
    counted: bool = False


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
        document = _load(content)
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


def _load(content: bytes) -> Any:
    """Fast where it is plain JSON; other encodings than UTF-8, NaN and what is broken are left to Python's reader."""
    import orjson

    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content)


def take_apart(document: Mapping[str, Any], *, strict: bool) -> tuple[CaseDocument, ...]:
    """The cases of a run: those selected, in their order, then whatever else was measured.

    Raises:
        Unreadable: another version of the schema; if ``strict``, any contradiction.
    """

    def broken(what: str) -> None:
        if strict:
            raise Unreadable(what)

    check_format(document)
    measured: dict[str, Mapping[str, Any]] = {}
    for index, bench in enumerate(document["benchmarks"]):
        if not isinstance(bench, Mapping) or not isinstance(bench.get("name"), str):
            broken(f"benchmarks[{index}]: not a benchmark with a name")
            continue
        if bench["name"] in measured:
            broken(f"{bench['name']}: measured twice in one run")
        measured[bench["name"]] = bench
    listed: dict[str, CaseDocument] = {}
    for index, entry in enumerate(_entries(document, broken)):
        if (problem := _problem_of(entry, f"perf_cases[{index}]", listed, measured)) is not None:
            broken(problem)
        name, outcome = mapping(entry).get("id"), mapping(entry).get("outcome")
        if isinstance(name, str) and isinstance(outcome, str) and name not in listed:
            counted = "extra_info" in entry and name not in measured
            bench = entry if counted else measured.get(name, {})
            listed[name] = CaseDocument(name, outcome, entry.get("reason"), bench, counted)
    others = [CaseDocument(name, "passed", None, bench) for name, bench in measured.items() if name not in listed]
    found = (*listed.values(), *others)
    ours = [case for case in found if "schema_version" in mapping(case.bench.get("extra_info"))]
    for case in ours:
        check_version(case.bench["extra_info"]["schema_version"], case.id)
    if ours and "perf_cases" not in document:
        broken("no perf_cases: which cases were selected is not known")
    for case in ours:
        if case.id not in listed:
            broken(f"{case.id}: measured, but not in perf_cases")
    return found


def _entries(document: Mapping[str, Any], broken: Callable[[str], None]) -> list[Any]:
    entries = document.get("perf_cases", [])
    if not isinstance(entries, list):
        broken("perf_cases: not a list")
        return []
    return entries


def _problem_of(
    entry: object, where: str, listed: Mapping[str, CaseDocument], measured: Mapping[str, object]
) -> str | None:
    """What is wrong with an entry of ``perf_cases``."""
    for problem in validate(entry, PERF_CASES, where, only=False):
        return problem
    assert isinstance(entry, Mapping)
    if entry["outcome"] not in OUTCOMES:
        return f"{where}.outcome: {entry['outcome']!r} is none of {', '.join(OUTCOMES)}"
    if entry["id"] in listed:
        return f"{entry['id']}: twice in perf_cases"
    if "extra_info" in entry:
        if "schema_version" not in mapping(entry["extra_info"]):
            return f"{where}.extra_info: not a record of the suite"
        if entry["id"] in measured:
            return f"{entry['id']}: measured twice in one run"
    return None


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


def mapping(value: object) -> Mapping[str, Any]:
    """A JSON object, or an empty one in place of anything else."""
    return value if isinstance(value, Mapping) else {}


def in_utc(text: str) -> str:
    """A time with its zone as that of UTC, so that texts sort as what they mean; any other text as it is."""
    try:
        recorded = datetime.fromisoformat(text)
        return recorded.astimezone(UTC).isoformat() if recorded.utcoffset() else text
    except (ValueError, OverflowError):
        return text
