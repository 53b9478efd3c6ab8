"""Sessions that wait for their shape; that they hold graphs is for a GPU to show."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from whisper_flash_attention.kv_cache import CacheShape
from whisper_flash_attention.session_pool import IDLE_SHARE, SessionPool

from .tiny import SOURCE_POSITIONS, Pair

KIND = {"stores_cross": True, "hides": False}


def shape(batch: int, capacity: int = 20) -> CacheShape:
    return CacheShape(layers=2, batch=batch, heads=4, head_dim=16, capacity=capacity, frames=SOURCE_POSITIONS)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Of the device, as the driver would say."""
    properties = SimpleNamespace(total_memory=2**40)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return properties


def lend(pool: SessionPool, pair: Pair, batch: int) -> Any:
    with pool.lend(pair.flash.decoder_weights(), shape(batch), None, None, None, **KIND) as session:
        return session


def test_shapes_by_turns_keep_their_sessions(pair: Pair, memory: SimpleNamespace) -> None:
    pool = SessionPool()
    first = [lend(pool, pair, batch) for batch in (4, 3, 2)]
    assert [lend(pool, pair, batch) for batch in (4, 3, 2)] == first


def test_one_session_serves_prompts_of_several_lengths(pair: Pair, memory: SimpleNamespace) -> None:
    pool, weights = SessionPool(), pair.flash.decoder_weights()
    lent = []
    for capacity in (20, 32, 21, 33):
        with pool.lend(weights, shape(2, capacity), None, None, None, **KIND) as session:
            lent.append(session)
            assert session.cache.shape.capacity >= capacity
    assert len(set(lent)) == 2


def test_longest_idle_goes_first(pair: Pair, memory: SimpleNamespace) -> None:
    """When they hold more than their share of the device; the one that was just used always stays for the next call."""
    pool = SessionPool()
    large, small = lend(pool, pair, 4), lend(pool, pair, 1)
    memory.total_memory = (large.nbytes + small.nbytes - 1) / IDLE_SHARE
    assert lend(pool, pair, 1) is small
    assert lend(pool, pair, 2) is not None
    assert lend(pool, pair, 1) is small
    assert lend(pool, pair, 4) is not large


def test_one_call_at_a_time(pair: Pair, memory: SimpleNamespace) -> None:
    pool = SessionPool()
    weights = pair.flash.decoder_weights()
    with (
        pool.lend(weights, shape(2), None, None, None, **KIND) as one,
        pool.lend(weights, shape(2), None, None, None, **KIND) as other,
    ):
        assert one is not other


def test_moved_weights_leave_none(pair: Pair, memory: SimpleNamespace) -> None:
    pool = SessionPool()
    first = lend(pool, pair, 2)
    pair.flash.double().float()
    assert lend(pool, pair, 2) is not first


def test_new_numbers_in_the_same_places_keep_it(pair: Pair, memory: SimpleNamespace) -> None:
    pool = SessionPool()
    first = lend(pool, pair, 2)
    with torch.no_grad():
        for parameter in pair.flash.parameters():
            parameter.mul_(0.9)
    assert lend(pool, pair, 2) is first


@pytest.mark.parametrize("part", ["model.decoder.layers.0.fc1", "model.decoder", "proj_out"])
def test_parts_of_another_dtype_leave_none(part: str, pair: Pair, memory: SimpleNamespace) -> None:
    """Also where the model itself is not told."""
    pool = SessionPool()
    first = lend(pool, pair, 2)
    pair.flash.get_submodule(part).bfloat16()
    assert lend(pool, pair, 2) is not first


def test_a_setting_that_a_graph_holds_leaves_none(pair: Pair, memory: SimpleNamespace) -> None:
    pool = SessionPool()
    first = lend(pool, pair, 2)
    pair.flash.model.decoder.layer_norm.eps *= 2
    assert lend(pool, pair, 2) is not first


def test_failed_call_leaves_none(pair: Pair, memory: SimpleNamespace) -> None:
    """What it left half-written does not serve another."""
    pool = SessionPool()
    weights = pair.flash.decoder_weights()
    with pytest.raises(RuntimeError), pool.lend(weights, shape(2), None, None, None, **KIND) as session:
        raise RuntimeError
    assert lend(pool, pair, 2) is not session
