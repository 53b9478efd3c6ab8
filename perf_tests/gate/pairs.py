"""Pairing the cases of two runs by id and definition, and refusing runs that are not about the same."""

from collections.abc import Collection
from typing import NamedTuple

from perf_tests.common.errors import BadInputError
from perf_tests.common.text import clean, count_of
from perf_tests.runs.fingerprint import FINGERPRINT, STEP, Difference, differences, without
from perf_tests.runs.records import DEFINITION, TIMER, Record
from perf_tests.runs.saved import Run

ALLOWABLE = (*FINGERPRINT, STEP, *DEFINITION, TIMER, "case_definition")


class Pair(NamedTuple):
    """A case of either run or of both; ``None`` where a run did not select it."""

    id: str
    base: Record | None
    head: Record | None


class Pairing(NamedTuple):
    """The pairs, BASE's order first, and what the runs differ in although they are compared."""

    pairs: tuple[Pair, ...]
    differences: tuple[Difference, ...]


def pair_runs(base: Run, head: Run, allow: Collection[str] = (), *, timed: bool = True) -> Pairing:
    """Pair the cases of ``base`` and ``head``.

    Without ``timed`` runs of unlike machines pair too: memory and counters do not depend on how fast it is.

    Raises:
        BadInputError: the same run twice, no case in common, or unlike machines or definitions that ``allow`` does not
            name.
    """
    if base.document == head.document:
        raise BadInputError(f"{clean(base.name)} and {clean(head.name)}: the same run twice")
    ids = dict.fromkeys((*base.records, *head.records))
    pairs = tuple(Pair(case_id, base.records.get(case_id), head.records.get(case_id)) for case_id in ids)
    common = [pair for pair in pairs if pair.base is not None and pair.head is not None]
    if not common:
        raise BadInputError(f"{clean(base.name)} and {clean(head.name)}: no case in common")
    machines = differences(base.machine_info, head.machine_info, recorded_only=base.plain or head.plain)
    definitions = definition_differences(common, allow)
    refused = (*without(machines, allow if timed else (*FINGERPRINT, *allow)), *definitions)
    if refused:
        keys = " ".join(f"--allow {difference.key}" for difference in refused)
        other = ""
        if all(difference.key in (*FINGERPRINT, TIMER) for difference in refused):
            other = "; the exact numbers compare all the same with --only memory --only counters --only parity"
        raise BadInputError(f"unlike runs: {', '.join(map(str, refused))}; {keys} compares them as they are{other}")
    return Pairing(pairs, machines)


def definition_differences(pairs: Collection[Pair], allow: Collection[str] = ()) -> tuple[Difference, ...]:
    """What the definitions differ in, apart from what is allowed: the recorded keys, else the hash alone.

    Where all the recorded keys that differ are allowed, so is the hash, which follows them. The clock is none of them.
    """
    found: dict[str, Difference] = {}
    cases = 0
    for pair in pairs:
        ours, theirs = (record.definition if record else {} for record in (pair.base, pair.head))
        if not ours or not theirs:
            continue
        unlike = {key for key in ours if ours[key] != theirs[key]}
        if None in (ours[TIMER], theirs[TIMER]):  # one of them was counted without timing
            unlike.discard(TIMER)
        if not unlike.isdisjoint(DEFINITION):
            unlike.discard("case_definition")
        keys = [key for key in (TIMER, *DEFINITION, "case_definition") if key in unlike and key not in allow]
        cases += "case_definition" in keys
        for key in keys:
            found.setdefault(key, Difference(key, ours[key], theirs[key]))
    last = next(reversed(found), None)
    if last is not None and last == "case_definition":
        change = found[last]
        found[last] = change._replace(head=f"{clean(change.head)}, {count_of(cases, 'case')}")
    return tuple(found.values())


def check_allowed(keys: Collection[str]) -> None:
    """Refuse a key that nothing is refused for.

    Raises:
        BadInputError: with the keys there are.
    """
    for key in keys:
        if key not in ALLOWABLE:
            raise BadInputError(f"--allow: {clean(key)!r} is unknown; choose from {', '.join(ALLOWABLE)}")
