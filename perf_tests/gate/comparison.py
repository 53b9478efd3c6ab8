"""HEAD against BASE, all cases: verdicts, and what a reader must know to weigh them."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any, NamedTuple

from perf_tests.common.errors import COULD_NOT_JUDGE
from perf_tests.common.package_hash import SamePackageError
from perf_tests.common.text import clean, count_of, percent
from perf_tests.runs.fingerprint import SPEED_ONLY, STEP, Difference
from perf_tests.runs.saved import Run

from .calibration import Calibration, Noise, read_calibration
from .explain import Explanation, to_json
from .judging import UNCORRECTED, judge_case
from .pairs import Pair, definition_differences, pair_runs
from .thresholds import DEFAULT_NOISE, TIME, Rules
from .verdicts import CaseResult, Finding, Verdict, exit_code, worst_of

# Of the cases that a note is about, so many are named.
SHOWN_IDS = 3


class Comparison(NamedTuple):
    """The result. ``notes`` are lines for the reader, ``cases`` come in the order of the runs.

    ``explanations`` say by case id which operators changed, where that was asked for.
    """

    base: str
    head: str
    verdict: Verdict
    exit_code: int
    cases: tuple[CaseResult, ...]
    notes: tuple[str, ...]
    explanations: Mapping[str, Explanation] = {}

    def by_badness(self) -> list[CaseResult]:
        """The cases, worst first."""
        return sorted(self.cases, key=lambda case: -case.verdict.badness)

    def summary(self) -> str:
        """``REGRESSED: 1 of 12 cases regressed, 11 pass``."""
        counts = Counter(case.verdict for case in self.cases)
        words = {Verdict.PASS: "pass", Verdict.AMBIGUOUS: "ambiguous"}
        parts = [f"{counts[v]} {words.get(v, v.lower())}" for v in reversed(Verdict) if counts[v]]
        parts[0] = parts[0].replace(" ", f" of {count_of(len(self.cases), 'case')} ", 1)
        verdict = "COULD NOT JUDGE" if self.exit_code == COULD_NOT_JUDGE else str(self.verdict)
        return f"{verdict}: {', '.join(parts)}"

    def accepted(self) -> list[tuple[str, Finding]]:
        """Growth that was accepted, by case id."""
        return [(case.id, finding) for case in self.cases for finding in case.findings if finding.accepted]

    def _explained(self, case_id: str) -> dict[str, Any]:
        found = self.explanations.get(case_id)
        return {} if found is None else {"explanation": to_json(found)}

    def to_json(self) -> dict[str, Any]:
        """What ``compare --json`` writes."""
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "base": self.base,
            "head": self.head,
            "notes": [*self.notes],
            "cases": [
                {
                    "id": case.id,
                    "verdict": case.verdict,
                    "reasons": [*case.reasons],
                    "metrics": [_finite(finding._asdict()) for finding in case.findings],
                    **self._explained(case.id),
                }
                for case in self.cases
            ],
        }


def compare_runs(
    base: Run,
    head: Run,
    rules: Rules,
    *,
    allow: Collection[str] = (),
    base_chosen: bool = True,
    strict: bool = False,
    same: bool = False,
) -> Comparison:
    """Judge every case of both runs.

    Raises:
        SamePackageError: both are of one package and nothing else is compared, and that is not asked for (``same``).
        BadInputError: the runs cannot be compared; one line that says why.
    """
    counted = base.counted and head.counted
    timed = TIME in rules.kinds and not counted
    pairs, differences = pair_runs(base, head, (*allow, *(SPEED_ONLY if counted else ())), timed=TIME in rules.kinds)
    same_package = _measured_the_same(base, head, (*differences, *definition_differences(pairs)), allow)
    if same_package and not same:
        raise SamePackageError(clean(base.package_hash))
    calibrations = [read_calibration(run.machine_info) for run in (base, head)] if timed else []
    cases = tuple(judge_case(pair, rules, noise_of(pair, calibrations)) for pair in pairs)
    verdict = worst_of(case.verdict for case in cases)
    code = COULD_NOT_JUDGE if base.plain or head.plain else exit_code(verdict, strict=strict)
    notes = []
    if base.plain or head.plain:
        names = " and ".join(name for name, run in (("BASE", base), ("HEAD", head)) if run.plain)
        notes.append(f"{names}: plain pytest-benchmark without the suite's keys: uncorrected times are all there is")
    if same_package:
        notes.append(f"both runs measured the same package ({clean(base.package_hash)}): what differs is noise")
    if not base_chosen:
        notes.append(
            f"BASE is {clean(base.name.partition(':')[0])}, whatever was saved then, and not a baseline that anybody"
            " chose: python -m perf_tests promote RUN NAME makes one"
        )
    notes += [
        f"{name}'s commit has no compiled step, the other's has one"
        for name, run, other in (("BASE", base, head), ("HEAD", head, base))
        if run.machine_info.get(STEP) is None and other.machine_info.get(STEP) is not None
    ]
    if base.dirty:
        notes.append("BASE was measured with uncommitted changes")
    notes += [
        f"{name} was measured in parts: its cases are of {len(sessions)} sessions"
        for name, run in (("BASE", base), ("HEAD", head))
        if isinstance(sessions := run.document.get("perf_sessions"), list) and len(sessions) > 1
    ]
    if differences:
        notes.append(f"compared although the machines differ: {', '.join(map(str, differences))}")
    both = sum(pair.base.counted and pair.head.counted for pair in pairs if pair.base and pair.head)
    if both and TIME in rules.kinds:
        what = count_of(both, "case")
        notes.append(f"{what}: counted without timing by both runs (--perf-counters-only): no time or parity to judge")
    notes += _disturbance_notes(cases)
    notes += _open_notes(cases)
    notes += _calibration_notes(cases, pairs, calibrations)
    notes += _drift_notes(cases, pairs)
    return Comparison(base.describe(), head.describe(), verdict, code, cases, tuple(notes))


def _measured_the_same(base: Run, head: Run, found: Collection[Difference], allow: Collection[str]) -> bool:
    """Whether both runs are of one package, and of the differences that were ``found`` none is what is compared.

    One that somebody allowed is; so is one of machines where only exact numbers are judged, if those depend on it.
    """
    compared = any(
        difference.base != difference.head and (difference.key in allow or difference.key not in SPEED_ONLY)
        for difference in found
    )
    return base.package_hash is not None and base.package_hash == head.package_hash and not compared


def noise_of(pair: Pair, calibrations: Collection[Calibration]) -> Noise:
    """A case's noise: the larger one where BASE's and HEAD's machines differ."""
    noises = [calibration.of(pair.id, pair.base.definition if pair.base else {}) for calibration in calibrations]
    return max(noises, key=lambda noise: noise[:3], default=Noise(DEFAULT_NOISE, calibrated=False))


def _disturbance_notes(cases: Collection[CaseResult]) -> list[str]:
    """What passed where a machine at rest would have shown more."""
    by_limit: dict[float, list[str]] = {}
    for case in cases:
        finding = case.finding(TIME)
        if finding is not None and finding.disturbed and finding.verdict is Verdict.PASS and finding.allowed:
            by_limit.setdefault(finding.allowed, []).append(case.id)
    return [
        f"passed on a disturbed machine, where up to {percent(limit, sign=False)} slower may be noise: {_ids(ids)}"
        for limit, ids in by_limit.items()
    ]


def _open_notes(cases: Collection[CaseResult]) -> list[str]:
    """What was not judged, and what would settle it."""
    by_remedy: dict[str, list[str]] = {}
    for case in cases:
        if case.verdict is Verdict.AMBIGUOUS:
            remedies = [finding.settled_by for finding in case.findings if finding.settled_by]
            by_remedy.setdefault(remedies[0] if remedies else "", []).append(case.id)
    return [
        f"not judged: {_ids(ids)}" + (f"; what would settle it: {remedy}" if remedy else "")
        for remedy, ids in by_remedy.items()
    ]


def _ids(ids: Sequence[str]) -> str:
    shown = ", ".join(clean(case_id) for case_id in ids[:SHOWN_IDS])
    return shown if len(ids) <= SHOWN_IDS else f"{shown} and {len(ids) - SHOWN_IDS} more"


def _calibration_notes(
    cases: Collection[CaseResult], pairs: Collection[Pair], calibrations: Collection[Calibration]
) -> list[str]:
    noises = {
        pair.id: noise_of(pair, calibrations)
        for case, pair in zip(cases, pairs, strict=True)
        if (finding := case.finding(TIME)) and finding.allowed is not None  # else no time was judged
    }
    notes = []
    for calibration in {calibration.path: calibration for calibration in calibrations}.values():
        own = {*calibration.cases.values()}
        if used := [noise for noise in noises.values() if noise in own]:
            notes.append(calibration.describe(used, datetime.now(UTC)))
    unknown = sum(not noise.calibrated for noise in noises.values())
    default = percent(DEFAULT_NOISE, sign=False)
    if unknown and not any(calibration.cases for calibration in calibrations):
        notes.append(f"no calibration of this machine: its noise is taken for {default}")
    elif unknown:
        notes.append(
            f"{count_of(unknown, 'case')} not in this machine's calibration: their noise is taken for {default}"
        )
    return notes


def _drift_notes(cases: Collection[CaseResult], pairs: Collection[Pair]) -> list[str]:
    """How far the times of what others are corrected by moved themselves: the machine, not the code under test."""
    controls = {pair.head.control for pair in pairs if pair.head is not None and pair.head.control}
    changes = [
        finding.change
        for case, pair in zip(cases, pairs, strict=True)
        if pair.head is not None and pair.head.implementation in controls
        if (finding := case.finding(UNCORRECTED)) and finding.change is not None
    ]
    if not changes:
        return []
    names = clean(" and ".join(sorted(controls)))
    what = f"{percent(median(changes))} (median of {count_of(len(changes), 'case')})"
    return [f"uncorrected times of {names} moved by {what}: that is the machine, and what others are corrected for"]


def _finite(finding: Mapping[str, Any]) -> dict[str, Any]:
    """Strict JSON knows no NaN and no infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in finding.items()}
