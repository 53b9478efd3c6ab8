"""Verdicts: of one metric of a case (a finding), of a case, of a run."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from perf_tests.common.text import clean


class Verdict(StrEnum):
    """What the gate says. The order is that of badness, best first; a run's verdict is its worst case's."""

    IMPROVED = "IMPROVED"
    PASS = "PASS"
    NEW = "NEW"
    AMBIGUOUS = "AMBIGUOUS"
    REGRESSED = "REGRESSED"
    MISSING = "MISSING"
    FAILED = "FAILED"

    @property
    def badness(self) -> int:
        return list(Verdict).index(self)


FAILING = frozenset({Verdict.REGRESSED, Verdict.MISSING, Verdict.FAILED})


class Finding(NamedTuple):
    """One metric of a case, judged; without a verdict it is for information only.

    ``change``, ``low``, ``high`` and ``allowed`` are relative to BASE: 0.05 is 5 % more. ``base`` and
    ``head`` are in the metric's unit: seconds for time, else the unit in its name. ``disturbed`` is true where
    ``allowed`` is what a disturbed machine needs, and ``settled_by`` says what would settle what is AMBIGUOUS.
    """

    metric: str
    verdict: Verdict | None
    reason: str
    base: float | None = None
    head: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    allowed: float | None = None
    accepted: str | None = None
    disturbed: bool = False
    settled_by: str | None = None


class CaseResult(NamedTuple):
    """A case, judged."""

    id: str
    verdict: Verdict
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...] = ()

    def finding(self, metric: str) -> Finding | None:
        """What was found about one metric."""
        return next((finding for finding in self.findings if finding.metric == metric), None)


def conclude(case_id: str, findings: Sequence[Finding]) -> CaseResult:
    """A case's verdict: the worst of its findings'; IMPROVED where something is better and nothing worse.

    Where nothing could be judged that is AMBIGUOUS, and no PASS.
    """
    judged = [finding for finding in findings if finding.verdict is not None]
    if not judged:
        return CaseResult(
            case_id, Verdict.AMBIGUOUS, ("nothing of it could be judged", *_reasons(findings)), (*findings,)
        )
    worst = worst_of(finding.verdict for finding in judged if finding.verdict)
    if worst is Verdict.PASS and any(finding.verdict is Verdict.IMPROVED for finding in judged):
        worst = Verdict.IMPROVED
    return CaseResult(case_id, worst, _reasons(findings), (*findings,))


def worst_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of at least one verdict."""
    return max(verdicts, key=lambda verdict: verdict.badness)


def exit_code(verdict: Verdict, *, strict: bool) -> int:
    """0 where nothing is worse, 1 where something is; ``strict`` counts AMBIGUOUS as worse."""
    return int(verdict in FAILING or (strict and verdict is Verdict.AMBIGUOUS))


def _reasons(findings: Sequence[Finding]) -> tuple[str, ...]:
    """The worst first; a metric that is as it was gives none."""
    telling = [f for f in findings if f.verdict is not Verdict.PASS or f.accepted]
    telling.sort(key=lambda finding: -finding.verdict.badness if finding.verdict else 0)
    return tuple(clean(finding.reason) for finding in telling)
