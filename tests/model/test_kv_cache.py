"""The in-place cache against Transformers' growing one, and in Transformers' hands."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from whisper_flash_attention.kv_cache import CacheShape, CrossBuffer, InPlaceLayer, WhisperKVCache

from .compare import assert_same
from .tiny import Pair, mel_features


def layer(capacity: int, batch: int = 2) -> InPlaceLayer:
    return InPlaceLayer(torch.full((2, batch, 3, capacity, 4), torch.nan))


CHANGES: dict[str, Callable[[Any], None]] = {
    "nothing": lambda layer: None,
    "reorder": lambda layer: layer.reorder_cache(torch.tensor([1, 1])),
    "crop": lambda layer: layer.crop(-2),
    "repeat": lambda layer: layer.batch_repeat_interleave(3),
    "select": lambda layer: layer.batch_select_indices(torch.tensor([1])),
    "reset": lambda layer: layer.reset(),
}


@pytest.mark.parametrize("made", ["before", "at first use"])
@pytest.mark.parametrize("capacity", [12, 3])
@pytest.mark.parametrize("change", CHANGES)
def test_same_as_a_growing_layer(change: str, capacity: int, made: str) -> None:
    """Also when more is written than the buffer was made for."""
    ours = layer(capacity) if made == "before" else InPlaceLayer(capacity=capacity)
    theirs = DynamicLayer()
    batch = 2
    for step, new in enumerate([3, 1, 1, 4]):
        if step == 2:
            for each in (ours, theirs):
                CHANGES[change](each)
            if change == "reset":  # Transformers 5.17 fills with zeros, and goes on behind them
                theirs = DynamicLayer()
            batch = {"repeat": 6, "select": 1}.get(change, 2)
        keys, values = torch.randn(2, batch, 3, new, 4)
        assert_same(ours.update(keys, values), theirs.update(keys, values), tolerance=0.0)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)


@pytest.mark.parametrize("change", CHANGES)
def test_changes_before_the_first_use(change: str) -> None:
    """They change nothing. A growing layer raises then at a reset, and before Transformers 5.23 at a crop too."""
    ours, theirs = InPlaceLayer(capacity=5), DynamicLayer()
    CHANGES[change](ours)
    assert ours.get_seq_length() == 0
    keys, values = torch.randn(2, 2, 3, 1, 4)
    assert_same(ours.update(keys, values), theirs.update(keys, values), tolerance=0.0)


def test_writes_in_place() -> None:
    ours = layer(6)
    address = ours.buffer.data_ptr()
    for _ in range(5):
        keys, _ = ours.update(*torch.randn(2, 2, 3, 1, 4))
        assert keys.data_ptr() == address


def test_crop_takes_a_negative_number() -> None:
    with pytest.raises(ValueError, match="negative number of positions"):
        layer(6).crop(2)


def whisper_cache(model: Any, batch: int, capacity: int) -> WhisperKVCache:
    config = model.config
    shape = CacheShape(
        layers=config.decoder_layers,
        batch=batch,
        heads=config.decoder_attention_heads,
        head_dim=config.d_model // config.decoder_attention_heads,
        capacity=capacity,
        frames=config.max_source_positions,
    )
    return WhisperKVCache(shape, model.dtype, model.device, CrossBuffer.empty(shape, model.dtype, model.device))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("capacity", [20, 2])
def test_in_transformers_own_loops(options: dict[str, Any], capacity: int, pair: Pair) -> None:
    """Given by the user, for beams too, which reorder it; too small, it grows."""
    rows = 2 * options.get("num_beams", 1) * options.get("num_return_sequences", 1)
    cache = whisper_cache(pair.flash, rows, capacity)
    ours = pair.flash.generate(mel_features(2), max_new_tokens=12, past_key_values=cache, **options)
    assert_same(ours, pair.original.generate(mel_features(2), max_new_tokens=12, **options))


def test_continues_where_the_loop_ended(pair: Pair) -> None:
    """The cache that generate returns is one that the model can be called with."""
    outputs = pair.flash.generate(
        mel_features(1), max_new_tokens=6, return_dict_in_generate=True, force_unique_generate_call=True
    )
    logits = pair.flash(
        encoder_outputs=(pair.flash.get_encoder()(mel_features(1))[0],),
        decoder_input_ids=outputs.sequences[:, -1:],
        past_key_values=outputs.past_key_values,
    ).logits
    expected = pair.original(mel_features(1), decoder_input_ids=outputs.sequences).logits[:, -1:]
    assert_same(logits, expected)
