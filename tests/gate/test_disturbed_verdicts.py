"""Verdicts on time where the machine was disturbed, or another one."""

from collections.abc import Callable
from typing import Any

import pytest

from perf_tests.gate.disturbance import DISTURBED_NOISE
from tests.make_runs import FLASH, bench_of, disturb, info_of, make_cuda, make_gpu_samples, slow_down

from .conftest import Outcome

Compare = Callable[..., Outcome]
Run = dict[str, Any]


@pytest.mark.parametrize("side", ["base", "head"])
@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.0, "PASS"), (1.05, "AMBIGUOUS"), (1.3, "REGRESSED"), (2.0, "REGRESSED"), (0.95, "PASS"), (0.6, "IMPROVED")],
)
def test_what_a_disturbance_cannot_do_is_judged(
    side: str, factor: float, verdict: str, compare: Compare, base: Run, head: Run
) -> None:
    slow_down(head, factor)
    disturb(base if side == "base" else head)
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == verdict
    assert outcome.code == (verdict == "REGRESSED")
    metric = next(metric for metric in outcome.case(FLASH)["metrics"] if metric["metric"] == "time")
    assert metric["allowed"] == DISTURBED_NOISE
    assert f"{side.upper()} was disturbed: others took up to 50 % of its cores" in metric["reason"]
    # Neither is quiet.
    assert (f"where up to 7.0 % slower may be noise: {FLASH}" in outcome.out) is (verdict == "PASS")
    assert (f"not judged: {FLASH}; what would settle it" in outcome.out) is (verdict == "AMBIGUOUS")


def test_disturbed_pairs_are_left_out(compare: Compare, base: Run, head: Run) -> None:
    """Fourteen of twenty: six are enough, and show what all of them would hide."""
    slow_down(head, 1.06)
    data = bench_of(disturb(head, share=0.7), FLASH)["stats"]["data"]
    data[:14] = [seconds / 1.5 for seconds in data[:14]]
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == "REGRESSED"
    assert "14 of 20 pairs of HEAD left out: others took up to 50 % of its cores" in outcome.why(FLASH)
    disturb(head, share=0.75)
    assert compare(base, head).verdict(FLASH) == "IMPROVED"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_cores_that_a_run_leaves_idle_are_free(device: str, compare: Compare, base: Run, head: Run) -> None:
    """On a CPU torch's threads count, on a GPU the one that launches kernels."""
    for run in (base, head):
        run["machine_info"]["available_cores"] = 16
        run["machine_info"]["thread_count"] = 8 if device == "cpu" else 16
        if device == "cuda":
            make_cuda(run)
    slow_down(head, 1.05)
    free = 8.0 if device == "cpu" else 15.0
    assert compare(base, disturb(head, cores=free)).verdict(FLASH) == "REGRESSED"
    assert compare(base, disturb(head, cores=free + 0.9)).verdict(FLASH) == "AMBIGUOUS"


@pytest.mark.parametrize(
    ("samples", "what"),
    [
        ({"foreign_processes": 1}, "others used its GPU"),
        ({"throttle_reasons": 0x40}, "its GPU's clocks were throttled"),
        ({"throttle_reasons": 0x05}, None),  # idle and capped, as a busy GPU may be
    ],
)
def test_a_gpu_that_was_disturbed_all_the_time_gives_no_verdict(
    samples: dict[str, int], what: str | None, compare: Compare, base: Run, head: Run
) -> None:
    for run in (base, head):
        make_cuda(run)
    slow_down(head, 2.0)
    info_of(head)["device_state"]["gpu"] = make_gpu_samples(**{key: [value] * 3 for key, value in samples.items()})
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == ("REGRESSED" if what is None else "AMBIGUOUS")
    if what is not None:
        assert f"not known; HEAD was disturbed: {what}" in outcome.why(FLASH)


def test_company_on_the_gpu_disturbs_the_pairs_that_it_was_there_for(compare: Compare, base: Run, head: Run) -> None:
    slow_down(head, 1.06)
    state = info_of(head)["device_state"]
    # A sample every quarter of a second, where a round begins every 50 ms: the first two have one with company beside.
    state["gpu"] = make_gpu_samples(foreign_processes=[1, 0, None]) | {"at_seconds": [0.0, 0.1, 0.25]}
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == "REGRESSED"
    assert "2 of 20 pairs of HEAD left out: others used its GPU" in outcome.why(FLASH)


def test_a_disturbed_process_of_several_is_left_out(compare: Compare, base: Run, head: Run) -> None:
    for run in (base, head):
        info_of(run)["process_rounds"] = [5, 5, 5, 5]
    slow_down(head, 1.06)
    bench_of(head, FLASH)["stats"]["data"][:5] = [0.05] * 5
    outcome = compare(base, disturb(head, share=0.25))
    assert outcome.verdict(FLASH) == "REGRESSED"
    assert "5 of 20 pairs of HEAD left out" in outcome.why(FLASH)


@pytest.mark.parametrize(
    ("flash", "verdict"), [(1.0, "PASS"), (1.05, "AMBIGUOUS"), (1.3, "REGRESSED"), (0.7, "IMPROVED")]
)
@pytest.mark.parametrize("machine", [1.5, 0.7])
def test_a_machine_that_was_another_one_is_taken_for_disturbed(
    machine: float, flash: float, verdict: str, compare: Compare, base: Run, head: Run
) -> None:
    slow_down(head, machine * flash)
    control = info_of(head)["control"]
    control["rounds_seconds"] = [seconds * machine for seconds in control["rounds_seconds"]]
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == verdict
    metric = next(metric for metric in outcome.case(FLASH)["metrics"] if metric["metric"] == "time")
    assert "the control itself moved by" in metric["reason"]


@pytest.mark.parametrize(("machine", "on_gpu"), [(4.0, False), (0.25, False), (1.3, True)])
def test_a_machine_that_was_quite_another_one_gives_no_verdict(
    machine: float, on_gpu: bool, compare: Compare, base: Run, head: Run
) -> None:
    for run in (base, head):
        if on_gpu:
            make_cuda(run)
    slow_down(head, 2 * machine)
    control = info_of(head)["control"]
    control["rounds_seconds"] = [seconds * machine for seconds in control["rounds_seconds"]]
    outcome = compare(base, head)
    assert outcome.verdict(FLASH) == "AMBIGUOUS"
    assert "the control itself moved by" in outcome.why(FLASH)
    assert f"not judged: {FLASH}; what would settle it: both sides measured anew on a machine at rest" in outcome.out


def test_memory_regresses_under_foreign_load_too(compare: Compare, base: Run, head: Run) -> None:
    disturb(head)
    info_of(head)["peak_memory_allocated_bytes"] *= 2
    assert compare(base, head).verdict(FLASH) == "REGRESSED"
