"""The gate's part of ``pyproject.toml``: ``[tool.perf_tests]``.

    [[tool.perf_tests.thresholds]]    # another threshold for some cases
    case = "tiny.en-*-flash"          # a pattern of ids, or of what their brackets hold
    metric = "time"                   # time, memory, counters, or one recorded key
    percent = 5

    [[tool.perf_tests.accept]]        # growth that is meant
    case = "*-flash"
    metric = "peak_memory_allocated_bytes"
    limit = 4                         # percent over BASE
    reason = "keeps keys and values in float32"

A threshold typed on the command line comes before these; of several patterns that match, the last one counts.
"""

import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from perf_tests.common.errors import BadInputError
from perf_tests.common.text import clean
from perf_tests.runs.records import COUNTERS, MEMORY

from .thresholds import TIME, Accepted, Threshold

CHECKOUT = Path(__file__).parents[2]
Entry = TypeVar("Entry")


class Config(NamedTuple):
    """What the file says."""

    thresholds: tuple[Threshold, ...] = ()
    accepted: tuple[Accepted, ...] = ()


def find_config() -> Path | None:
    """The ``pyproject.toml`` of the current directory, else the checkout's, if either has such a section."""
    for folder in (Path.cwd(), CHECKOUT):
        path = folder / "pyproject.toml"
        if path.is_file() and "perf_tests" in _load(path).get("tool", {}):
            return path
    return None


def read_config(path: Path | None) -> Config:
    """Read ``[tool.perf_tests]`` of ``path``; nothing without a path or a section.

    Raises:
        BadInputError: it cannot be read, or an entry is not as described above.
    """
    if path is None:
        return Config()
    section = _load(path).get("tool", {}).get("perf_tests", {})
    if not isinstance(section, Mapping):
        raise BadInputError(f"{clean(path)}: tool.perf_tests: not a table")
    unknown = sorted(set(section) - {"thresholds", "accept"})
    if unknown:
        raise BadInputError(f"{clean(path)}: tool.perf_tests.{clean(unknown[0])}: unknown; thresholds or accept")
    return Config(
        tuple(_entries(path, section, "thresholds", _threshold)),
        tuple(_entries(path, section, "accept", _accepted)),
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(f"{clean(path)}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadInputError(f"{clean(path)}: not TOML: {clean(error)}") from None


def _entries(
    path: Path, section: Mapping[str, Any], key: str, make: Callable[[Mapping[str, Any]], Entry]
) -> list[Entry]:
    entries = section.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise BadInputError(f"{clean(path)}: tool.perf_tests.{key}: not an array of tables")
    made = []
    for index, entry in enumerate(entries):
        try:
            made.append(make(entry))
        except ValueError as error:
            raise BadInputError(f"{clean(path)}: tool.perf_tests.{key}[{index}]: {clean(error)}") from None
    return made


def _threshold(entry: Mapping[str, Any]) -> Threshold:
    _check_keys(entry, {"case", "metric", "percent"})
    metric = _metric(entry, TIME, "memory", "counters")
    return Threshold(_text(entry, "case"), metric, _percent(entry, "percent"))


def _accepted(entry: Mapping[str, Any]) -> Accepted:
    _check_keys(entry, {"case", "metric", "limit", "reason"})
    metric = _metric(entry, "memory", "counters")
    return Accepted(_text(entry, "case"), metric, _percent(entry, "limit"), _text(entry, "reason"))


def _check_keys(entry: Mapping[str, Any], keys: set[str]) -> None:
    for key in sorted(set(entry) ^ keys):
        raise ValueError(f"{key}: {'missing' if key in keys else 'unknown'}; an entry has {', '.join(sorted(keys))}")


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}: not text")
    return value


def _metric(entry: Mapping[str, Any], *kinds: str) -> str:
    metric = _text(entry, "metric")
    known = (*kinds, *MEMORY, *COUNTERS)
    if metric not in known:
        raise ValueError(f"metric: {metric!r} is none of {', '.join(known)}")
    return metric


def _percent(entry: Mapping[str, Any], key: str) -> float:
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{key}: {value!r} is no percentage of 0 or more")
    return value / 100
