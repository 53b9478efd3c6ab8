"""The Whisper of fixed code beside each flash round, and what is recorded of it."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from perf_tests.matrix.cases import Cell
from perf_tests.matrix.plan import Options, Probes, make_plan
from perf_tests.measure.time import WALL_CLOCK
from perf_tests.measure.yardstick import VERSION, Reading, Yardstick, is_available, make_record
from tests.plugins.ticking_clock import tick

needs_onednn = pytest.mark.skipif(not is_available(), reason="needs a PyTorch with oneDNN")


class Seen(TorchDispatchMode):
    """Counts operators, and collects the dtypes of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.counts[func.overloadpacket.__name__] += 1
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.dtypes.add(result.dtype)
        return result


def seen(cell: Cell) -> Seen:
    yardstick = Yardstick(cell, WALL_CLOCK)
    with Seen() as mode:
        yardstick.measure()
    return mode


@needs_onednn
def test_both_parts_take_their_time() -> None:
    encoder, decoding = Yardstick(Cell("tiny.en", 2, "single"), WALL_CLOCK).measure()
    assert encoder > 0
    assert decoding > 0


@needs_onednn
def test_both_parts_are_timed_by_the_clock_that_was_given() -> None:
    assert Yardstick(Cell("tiny.en", 2, "single"), tick).measure() == Reading(1.0, 1.0)


@needs_onednn
def test_it_does_the_work_of_its_cell() -> None:
    shallow, deep = seen(Cell("tiny.en", 2, "single")).counts, seen(Cell("tiny.en", 4, "single")).counts
    assert (
        shallow["_embedding_bag_forward_only"] == deep["_embedding_bag_forward_only"] == 25
    )  # the vocabulary, for each token
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert shallow[attention] == 4 + 25 * 2
    assert deep[attention] == 4 + 25 * 4
    assert shallow["baddbmm"] == 25 * 2  # the cross-attention's
    assert deep["convolution"] == 2


@needs_onednn
def test_it_is_in_float32_whatever_the_default_is() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        dtypes = seen(Cell("tiny.en", 2, "single")).dtypes
    finally:
        torch.set_default_dtype(torch.float32)
    assert dtypes == {torch.float32}


@needs_onednn
def test_its_numbers_stay_in_range() -> None:
    yardstick = Yardstick(Cell("tiny.en", 2, "single"), WALL_CLOCK)
    with torch.no_grad():
        states = yardstick._encode()
    assert states.shape == (1500, 384)
    assert 0.1 < states.abs().mean() < 10


@needs_onednn
def test_it_moves_and_keeps_its_weights() -> None:
    yardstick = Yardstick(Cell("tiny.en", 2, "single"), WALL_CLOCK)
    before = yardstick._encoder[0].qkv
    yardstick.rebuild()
    assert yardstick._encoder[0].qkv is not before
    assert torch.equal(yardstick._encoder[0].qkv, before)


def test_the_parts_are_recorded_by_name() -> None:
    record = make_record([Reading(1.0, 0.1), Reading(5.0, 0.5)])
    assert record == {"version": VERSION, "rounds_seconds": {"encoder": [1.0, 5.0], "decoding": [0.1, 0.5]}}


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
