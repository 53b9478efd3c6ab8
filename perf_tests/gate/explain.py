"""What changed inside a case: operators called more or less often, and those that take another share of the time.

``op_counts`` are exact and always recorded; ``op_shares`` are there where both runs were made with
``--perf-profile``, and vary a little from run to run.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from perf_tests.common.text import clean, count_of

# Fractions of a round: shares move by about this much between runs of unchanged code.
LEAST_SHIFT = 0.01
MOST_LINES = 10


class OperatorChange(NamedTuple):
    """An operator's number of calls, or share of the time, in BASE and in HEAD."""

    operator: str
    base: float
    head: float


class Explanation(NamedTuple):
    """What changed in one case, the largest changes first; ``missing`` says what could not be looked at."""

    id: str
    counts: tuple[OperatorChange, ...]
    shares: tuple[OperatorChange, ...]
    missing: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """For people."""
        if not self.counts and "op_counts" not in self.missing:
            yield "the same operators, each as often as before"
        for change in self.counts[:MOST_LINES]:
            calls = f"{change.base:.0f} → {change.head:.0f} ({change.head - change.base:+.0f})"
            yield f"calls {calls:>26}  {clean(change.operator, 90)}"
        yield from _rest(self.counts)
        for change in self.shares[:MOST_LINES]:
            share = f"{change.base:.1%} → {change.head:.1%} ({100 * (change.head - change.base):+.1f})"
            yield f"share {share:>26}  {clean(change.operator, 90)}"
        yield from _rest(self.shares)
        if "op_counts" in self.missing:
            yield "operators by name were not recorded by both runs"
        if "op_shares" in self.missing:
            yield "shares of the time: measure both runs with --perf-profile DIR"


def explain_runs(base: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, Explanation]:
    """Compare the operators of every case that both saved runs (JSON documents) measured, by its id."""
    ours, theirs = _infos(base), _infos(head)
    return {name: _explain(name, ours[name], theirs[name]) for name in ours if name in theirs}


def to_json(explanation: Explanation) -> dict[str, Any]:
    """What ``compare --json --explain`` adds to a case."""
    return {
        "counts": [change._asdict() for change in explanation.counts],
        "shares": [change._asdict() for change in explanation.shares],
        "missing": [*explanation.missing],
    }


def _explain(name: str, base: Mapping[str, Any], head: Mapping[str, Any]) -> Explanation:
    counts = [_read(info, "op_counts") for info in (base, head)]
    shares = [_read(info, "op_shares") for info in (base, head)]
    missing = [key for key, pair in (("op_counts", counts), ("op_shares", shares)) if None in pair]
    return Explanation(name, _changes(counts, 0.0), _changes(shares, LEAST_SHIFT), (*missing,))


def _changes(pair: list[dict[str, float] | None], least: float) -> tuple[OperatorChange, ...]:
    base, head = pair
    if base is None or head is None:
        return ()
    names = dict.fromkeys((*base, *head))
    changes = (OperatorChange(name, base.get(name, 0), head.get(name, 0)) for name in names)
    told = (change for change in changes if abs(change.head - change.base) > least)
    return tuple(sorted(told, key=lambda change: -abs(change.head - change.base)))


def _infos(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    timed = {str(bench.get("name")): bench.get("extra_info") or {} for bench in document.get("benchmarks") or ()}
    entries = document.get("perf_cases") or ()
    return timed | {str(entry.get("id")): entry["extra_info"] or {} for entry in entries if "extra_info" in entry}


def _read(info: Mapping[str, Any], key: str) -> dict[str, float] | None:
    """The numbers by name, or ``None`` where there are none that can be read."""
    values = info.get(key)
    if not isinstance(values, Mapping):
        return None
    return {str(name): value for name, value in values.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15  # no NaN either


def _rest(changes: tuple[OperatorChange, ...]) -> Iterator[str]:
    if len(changes) > MOST_LINES:
        yield f"and {count_of(len(changes) - MOST_LINES, 'operator')} more"
