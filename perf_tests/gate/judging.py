"""Judging one case: its time, its exact numbers, its parity."""

import math
from collections.abc import Iterator

from perf_tests.common.text import clean, percent
from perf_tests.runs.records import COUNTERS, FRACTION, MEMORY, Parity, Record
from perf_tests.runs.schema import COUNTED_INFO, EXTRA_INFO
from perf_tests.runs.statistics import Change, are_alike, corrected_change, uncorrected_change

from .calibration import Noise
from .disturbance import sift
from .pairs import Pair
from .thresholds import PARITY, RESERVED_SEGMENT_BYTES, TIME, Rules
from .verdicts import CaseResult, Finding, Verdict, conclude

UNCORRECTED = "uncorrected time"
# What would settle what is AMBIGUOUS.
MORE_ROUNDS = "more rounds (ab --budget MINUTES)"
AT_REST = "both sides measured anew on a machine at rest (ab)"
OPTIONAL = frozenset(field.name for field in EXTRA_INFO if field.nullable)
OPTIONAL_COUNTED = frozenset(field.name for field in COUNTED_INFO if field.nullable)
COUNTING = "--perf-counters-only"
NOT_MEASURED = "passed in perf_cases, but nothing measured was saved"


def judge_case(pair: Pair, rules: Rules, noise: Noise) -> CaseResult:
    """Give a case its verdict."""
    base, head = pair.base, pair.head
    if head is None:
        return CaseResult(pair.id, Verdict.MISSING, ("HEAD did not select it",))
    if head.outcome != "passed":
        reason = f"{head.outcome} in HEAD" + (f": {clean(head.reason)}" if head.reason else "")
        return CaseResult(pair.id, Verdict.FAILED, (reason,))
    if not head.measured:
        return CaseResult(pair.id, Verdict.MISSING, (f"{NOT_MEASURED} by HEAD",))
    if base is None or not base.ran:
        return _judge_new(pair.id, base, head)
    findings: list[Finding] = []
    if TIME in rules.kinds:
        findings += _judge_time(base, head, rules, noise)
    if not (base.plain and head.plain):
        exact = [*MEMORY] if "memory" in rules.kinds else []
        exact += COUNTERS if "counters" in rules.kinds else ()
        findings += [f for metric in exact if (f := _judge_exact(base, head, metric, rules)) is not None]
        if PARITY in rules.kinds and not (base.counted and head.counted):
            findings.append(_judge_parity(base, head))
    result = conclude(pair.id, findings)
    return result._replace(findings=(*result.findings, *_fraction_of_limit(base, head)))


def _judge_new(case_id: str, base: Record | None, head: Record) -> CaseResult:
    """A case without a measurement in BASE: whether it is right is all that can be said."""
    why = "BASE did not select it"
    if base is not None:
        why = f"{base.outcome} in BASE" if base.outcome != "passed" else f"{NOT_MEASURED} by BASE"
    problem = parity_problem(head.parity, None, str(head.definition.get("dtype"))) if head.parity else None
    if problem:
        return CaseResult(case_id, Verdict.FAILED, (problem, why))
    return CaseResult(case_id, Verdict.NEW, (why,))


# Time


def _judge_time(base: Record, head: Record, rules: Rules, noise: Noise) -> Iterator[Finding]:
    if base.counted or head.counted:
        if not base.counted:
            reason = f"time: measured by BASE, not by HEAD ({COUNTING}); --only counters compares the rest"
            yield Finding(TIME, Verdict.MISSING, reason)
        elif not head.counted:
            yield Finding(TIME, None, f"time: not measured by BASE ({COUNTING})")
        return
    raw = uncorrected_change(base.seconds, head.seconds)
    text = f"{UNCORRECTED} {percent(raw)}"
    if not base.control_seconds and not head.control_seconds:
        reason = f"{text}: for information only, the machine's drift is in it" if base.plain or head.plain else text
        yield Finding(UNCORRECTED, None if base.plain or head.plain else Verdict.PASS, reason, change=raw)
        return
    if not head.control_seconds:
        yield Finding(TIME, Verdict.MISSING, f"HEAD recorded no control rounds, BASE did ({text})")
    elif not base.control_seconds:
        yield Finding(TIME, Verdict.AMBIGUOUS, f"BASE recorded no control rounds: time cannot be judged ({text})")
    elif base.control != head.control:
        controls = f"{clean(base.control)} / {clean(head.control)}"
        yield Finding(TIME, Verdict.AMBIGUOUS, f"unlike controls ({controls}): time cannot be judged")
    else:
        yield _judge_corrected(base, head, rules, noise)
    yield Finding(UNCORRECTED, Verdict.PASS, text, change=raw)


def _judge_corrected(base: Record, head: Record, rules: Rules, noise: Noise) -> Finding:
    timed = sift(base, head)
    change = corrected_change(timed.base, timed.head)
    measure = "the measure of control and yardstick"
    if not are_alike((base.yardstick, head.yardstick)):
        measure, noise = "the control's measure", noise.without_yardstick()
    # Noise is what one process differs by from another: the mean of several has less of it.
    processes = min(max(1, len(run.process_rounds)) for run in (timed.base, timed.head))
    sources = {
        "threshold": rules.allowed(base.id, TIME, processes),
        "noise": noise.noise / math.sqrt(processes),
        "noise of a disturbed machine": (timed.noise or 0.0) / math.sqrt(processes),
    }
    *calm, disturbed = sources.values()
    allowed = max(*calm, disturbed)
    source = next(source for source, value in sources.items() if value == allowed)
    verdict, settled_by = time_verdict(change, allowed), None
    reason = f"time {show_change(change)} by {measure}, allowed {percent(allowed)} ({source})"
    if change.low is None:
        pairs = f"{len(timed.base.seconds)} and {len(timed.head.seconds)}"
        reason = f"time {percent(change.change)}, but {pairs} pairs are too few for a 95 % interval"
        settled_by = MORE_ROUNDS
    elif timed.noise is None:
        verdict, settled_by = Verdict.AMBIGUOUS, AT_REST
        reason += ": what such a disturbance changes is not known"
    elif verdict is Verdict.PASS and time_verdict(change, max(calm)) is Verdict.REGRESSED:
        verdict, settled_by = Verdict.AMBIGUOUS, AT_REST
        reason += ": the disturbance may have done that"
    elif verdict is Verdict.AMBIGUOUS:
        settled_by = MORE_ROUNDS
        reason += ": the interval does not exclude a regression"
    return Finding(
        TIME,
        verdict,
        "; ".join((reason, *timed.remarks)),
        change=change.change,
        low=change.low,
        high=change.high,
        allowed=allowed,
        disturbed=disturbed > max(calm),
        settled_by=settled_by,
    )


def time_verdict(change: Change, allowed: float) -> Verdict:
    """REGRESSED or IMPROVED where the interval excludes zero and the change exceeds ``allowed``.

    Else PASS where the interval excludes a regression of more than ``allowed``, and AMBIGUOUS where it does not.
    """
    if change.low is None or change.high is None:
        return Verdict.AMBIGUOUS
    if change.low > 0 and change.change > allowed:
        return Verdict.REGRESSED
    if change.high < 0 and change.change < -allowed:
        return Verdict.IMPROVED
    return Verdict.PASS if change.high <= allowed else Verdict.AMBIGUOUS


def show_change(change: Change) -> str:
    """``+5.1 % [+4.2, +6.0]``."""
    text = percent(change.change)
    if change.low is not None and change.high is not None:
        text += f" [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
    return text


def _fraction_of_limit(base: Record, head: Record) -> Iterator[Finding]:
    """How near a component comes to the machine's limits: shown and not judged, since no control corrects it.

    Of unchanged code it moves by a fifth from session to session: eight times within half a minute, on two cores of a
    shared EPYC, bandwidth was 33 to 46 GB/s and matrix products 188 to 216 GFLOP/s.
    """
    ours, theirs = base.fraction_of_limit, head.fraction_of_limit
    if ours is not None or theirs is not None:
        change = theirs / ours - 1 if ours and theirs is not None else None
        yield Finding(FRACTION, None, FRACTION, ours, theirs, change)


# Memory and counters


def _judge_exact(base: Record, head: Record, metric: str, rules: Rules) -> Finding | None:
    ours, theirs = base.exact.get(metric), head.exact.get(metric)
    if ours is None and theirs is None:
        if metric in (OPTIONAL_COUNTED if base.counted and head.counted else OPTIONAL):
            return None
        return Finding(metric, Verdict.AMBIGUOUS, f"{metric}: recorded by neither run")
    if theirs is None:
        return Finding(metric, Verdict.MISSING, f"{metric}: recorded by BASE, not by HEAD", base=ours)
    if ours is None:
        return Finding(metric, None, f"{metric}: not recorded by BASE", head=theirs)
    allowed = rules.allowed(base.id, metric)
    growth = theirs - ours
    slack = max(allowed * ours, RESERVED_SEGMENT_BYTES if metric == "peak_memory_reserved_bytes" else 0)
    change = growth / ours if ours else None
    if change is None and not growth:
        change = 0.0
    accepted = None
    verdict = Verdict.PASS
    reason = f"{metric} {percent(change) if change is not None else 'up from 0'} ({ours:,} → {theirs:,})"
    if growth > slack:
        verdict = Verdict.REGRESSED
        reason += f", allowed {percent(allowed)}"
        entry = rules.acceptance(base.id, metric, change) if change is not None else None
        if entry is not None:
            verdict, accepted = Verdict.PASS, entry.reason
            reason += f", accepted up to {percent(entry.limit)}: {entry.reason}"
    elif -growth > slack:
        verdict = Verdict.IMPROVED
    return Finding(metric, verdict, reason, ours, theirs, change, allowed=allowed, accepted=accepted)


# Parity


def _judge_parity(base: Record, head: Record) -> Finding:
    if head.parity is None:
        if base.parity is None:
            return Finding(PARITY, Verdict.AMBIGUOUS, "parity: recorded by neither run")
        return Finding(PARITY, Verdict.MISSING, "parity: recorded by BASE, not by HEAD")
    error = base.parity.max_abs_error if base.parity else None
    problem = parity_problem(head.parity, base.parity, str(head.definition.get("dtype")))
    text = f"parity error {head.parity.max_abs_error:.3g}, allowed {head.parity.bound:.3g}"
    verdict = Verdict.REGRESSED if problem else Verdict.PASS
    return Finding(PARITY, verdict, problem or text, base=error, head=head.parity.max_abs_error)


def parity_problem(head: Parity, base: Parity | None, dtype: str) -> str | None:
    """What is wrong with HEAD's parity, if anything is.

    BASE's bound counts too: the same weights and inputs give the same bound, so one that is larger was loosened.
    """
    if not head.max_abs_error <= head.bound:
        return f"parity error {head.max_abs_error:.3g} is past its bound, {head.bound:.3g}"
    if base is not None and base.bound < head.max_abs_error:
        return (
            f"parity error {head.max_abs_error:.3g} is past BASE's bound, {base.bound:.3g}; HEAD's is {head.bound:.3g}"
        )
    if head.tokens_equal is False and dtype == "float32":
        return "the greedy tokens are no longer the original's"
    regret, bound = head.token_regret, head.token_regret_bound
    if regret is not None and bound is not None and not regret <= bound:
        return f"chose a token {regret:.3g} below the best, allowed {bound:.3g}"
    return None
