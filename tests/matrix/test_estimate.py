"""The announced time, held to a run that was timed."""

import json
from pathlib import Path

import pytest

from perf_tests.matrix.estimate import Speed, forecast
from perf_tests.matrix.plan import Options, Plan, Probes, make_plan
from perf_tests.runs.journal import Context, Entry, Journal, Session
from perf_tests.session import terminal

RESULTS = Path(__file__).parents[2] / "results"
# What `look_at_speed` says of the machine of the committed run.
SPEED = Speed(flops=55e9, bytes=20e9, row_bytes=9e9, rows_bytes=2.8e9, call_seconds=9.9e-6)
CPU = Probes(lambda: False, lambda: 0, lambda dtype: True)
GPU = Probes(lambda: True, lambda: 1, lambda dtype: True)


def estimate_seconds(plan: Plan, speed: Speed) -> float:
    return sum(forecast(plan, speed).values())


def test_the_forecast_of_the_committed_run_is_right_within_30_percent() -> None:
    run = json.loads((RESULTS / "amd-epyc-2-threads-quick.json").read_text())
    assert "AMD EPYC" in run["machine_info"]["cpu"]["brand_raw"]
    took = sum(sum(bench["extra_info"]["pass_seconds"].values()) for bench in run["benchmarks"])
    plan = make_plan(Options(device="cpu"), CPU)
    assert len(plan.cases) == len(run["benchmarks"])
    assert estimate_seconds(plan, SPEED) == pytest.approx(took, rel=0.3)


def test_a_slower_cpu_takes_longer() -> None:
    plan = make_plan(Options(device="cpu"), CPU)
    slow = SPEED._replace(flops=SPEED.flops / 3, row_bytes=SPEED.row_bytes / 3, rows_bytes=SPEED.rows_bytes / 3)
    assert estimate_seconds(plan, slow) > 1.5 * estimate_seconds(plan, SPEED)


@pytest.mark.parametrize(("setting", "seconds"), [("single", 2.0), ("batched", 20.0)])
def test_a_gpus_forecast_is_of_the_order_that_was_seen(setting: str, seconds: float) -> None:
    """tiny.en's original with 4 layers on an H200, at 120 ms and 2.05 s a round, with 10 and 2 rounds timed."""
    rounds = {"single": "10", "batched": "2"}[setting]
    options = Options(
        checkpoints=("tiny.en",),
        decoder_layers=("4",),
        settings=(setting,),
        implementations=("original",),
        rounds=rounds,
    )
    assert seconds / 2 < estimate_seconds(make_plan(options, GPU), SPEED) < seconds * 2


def test_what_is_left_goes_by_what_is_to_come(tmp_path: Path) -> None:
    """Cases took twice as long as expected so far; that of an earlier session says nothing of this one."""
    names = ["earlier", "short", "long", "last"]
    entries = {"earlier": Entry("earlier", "passed", None, None, 0)}
    earlier = (Session(started=0.0, cases=1),)
    journal = Journal(tmp_path / "journal_1.jsonl", names, {}, Context(), entries, earlier)
    journal.close("short", None)
    assert terminal._left({"earlier": 100.0, "short": 2.0, "long": 40.0, "last": 10.0}, journal, 4.0) == 100.0
    journal.file.close()
