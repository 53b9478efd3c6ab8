"""The fixed work around each flash round, and what is recorded of it."""

import pytest
import torch

from perf_tests.measure.yardstick import VERSION, Reading, Yardstick, make_record
from perf_tests.plan import Options, Probes, make_plan


def test_both_parts_take_their_time() -> None:
    products, rows = Yardstick().measure()
    assert products > 0
    assert rows > 0


def test_a_round_has_the_mean_of_before_and_after() -> None:
    record = make_record([(Reading(1.0, 0.1), Reading(3.0, 0.3)), (Reading(5.0, 0.5), Reading(5.0, 0.7))])
    assert record["version"] == VERSION
    assert record["rounds_seconds"]["products"] == [2.0, 5.0]
    assert record["rounds_seconds"]["rows"] == pytest.approx([0.2, 0.6])


def test_the_work_is_of_no_cases_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    monkeypatch.setattr(torch, "matmul", lambda *factors, out: seen.extend(each.dtype for each in (*factors, out)))
    monkeypatch.setattr(torch, "mv", lambda *factors, out: seen.extend(each.dtype for each in (*factors, out)))
    torch.set_default_dtype(torch.bfloat16)
    try:
        Yardstick().measure()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {*seen} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "setting", "used"),
    [
        (Options(device="cpu"), "single", True),
        (Options(device="cpu"), "batched_small", True),
        (Options(device="cpu", components=True), "encoder_batch_1", False),
        (Options(device="cuda"), "single", False),
    ],
)
def test_it_is_for_generate_on_a_cpu(options: Options, setting: str, used: bool) -> None:
    plan = make_plan(options, Probes(lambda: True, lambda: 1, lambda dtype: True))
    assert plan.uses_yardstick(setting) == used
