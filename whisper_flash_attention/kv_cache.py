"""Keys and values, written in place.

`WhisperKVCache` is at once the storage of the decoding loop (one buffer for all layers, whose views the step
multiplies) and the cache that Transformers passes around: layers, lengths, reordering and cropping work on the same
memory. Nothing is concatenated, and nothing but the new tokens is copied per step.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from .weighted_rows import Bags, consecutive


class CacheShape(NamedTuple):
    """Dimensions of a cache.

    Attributes:
        layers: Decoder layers.
        batch: Sequences.
        heads: Attention heads.
        head_dim: Features per head.
        capacity: Decoder positions that fit.
        frames: Encoder positions.
    """

    layers: int
    batch: int
    heads: int
    head_dim: int
    capacity: int
    frames: int


class InPlaceLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer whose keys and values are views of the written part of a preallocated buffer.

    Args:
        buffer: `(2, batch, heads, capacity, head_dim)`, keys then values.
        length: Positions already written.
    """

    def __init__(self, buffer: Tensor, length: int = 0) -> None:
        super().__init__()
        self.dtype, self.device = buffer.dtype, buffer.device
        self.is_initialized = True
        self._bind(buffer, length)

    def _bind(self, buffer: Tensor, length: int) -> None:
        self.buffer = buffer
        self.keys, self.values = buffer[0, :, :, :length], buffer[1, :, :, :length]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values `(batch, heads, new, head_dim)` behind the old ones; return all written."""
        old, new = self.get_seq_length(), key_states.shape[2]
        if old + new > self.buffer.shape[3]:
            # More than was asked for at the start: never an error, the buffer grows by doubling.
            shape = list(self.buffer.shape)
            shape[3] = max(old + new, 2 * shape[3])
            grown = self.buffer.new_empty(shape)
            grown[:, :, :, :old] = self.buffer[:, :, :, :old]
            self.buffer = grown
        self.buffer[0, :, :, old : old + new] = key_states
        self.buffer[1, :, :, old : old + new] = value_states
        self._bind(self.buffer, old + new)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Positions written."""
        return int(self.keys.shape[2])

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last positions; they are given as a negative number, as Transformers does."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of positions to remove, not {tokens_to_remove}.")
        self._bind(self.buffer, max(self.get_seq_length() + tokens_to_remove, 0))

    def reset(self) -> None:
        """Forget everything; the buffer stays."""
        self._bind(self.buffer, 0)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give row i what row `beam_idx[i]` holds, written part only."""
        length = self.get_seq_length()
        if length:
            written = self.buffer[:, :, :, :length]
            written.copy_(written.index_select(1, beam_idx.to(self.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times."""
        self._bind(self.buffer.repeat_interleave(repeats, dim=1), self.get_seq_length())

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences `indices`."""
        self._bind(self.buffer[:, indices], self.get_seq_length())


def empty_cross_buffer(shape: CacheShape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room for the cross-attention's keys and values, `(layers, 2, batch, heads, frames, head_dim)`."""
    return torch.empty(
        shape.layers, 2, shape.batch, shape.heads, shape.frames, shape.head_dim, dtype=dtype, device=device
    )


class WhisperKVCache(EncoderDecoderCache):  # type: ignore[misc]
    """The cache of one `generate` call.

    Args:
        shape: Its dimensions.
        dtype: Of keys and values.
        device: Where they live.
        cross_buffer: The cross-attention's keys and values. Where it is None the cross part is empty, and the loop
            attends to the encoder states themselves.

    Attributes:
        self_buffer: `(layers, 2, batch, heads, capacity, head_dim)`, keys then values.
        cross_buffer: `(layers, 2, batch, heads, frames, head_dim)`, or None.
        self_layers: The layers of `self_buffer`; these and the following are views made once, since making them
            per layer and token costs more than some of the products they feed.
        self_keys, self_values: `(layers, batch, heads, capacity, head_dim)`.
        cross_keys_t: Per layer `(batch · heads, head_dim, frames)`.
        cross_values: Per layer `(batch · heads, frames, head_dim)`.
    """

    def __init__(
        self, shape: CacheShape, dtype: torch.dtype, device: torch.device, cross_buffer: Tensor | None
    ) -> None:
        self.shape = shape
        self.self_buffer = torch.empty(
            shape.layers, 2, shape.batch, shape.heads, shape.capacity, shape.head_dim, dtype=dtype, device=device
        )
        self.cross_buffer = cross_buffer
        self.self_layers = self.self_buffer.unbind()
        self.self_keys, self.self_values = self.self_buffer.unbind(1)
        self.cross_keys_t: tuple[Tensor, ...] = ()
        self.cross_values: tuple[Tensor, ...] = ()
        if cross_buffer is not None:
            flat = cross_buffer.flatten(2, 3)
            self.cross_keys_t, self.cross_values = flat[:, 0].transpose(2, 3).unbind(), flat[:, 1].unbind()
        super().__init__(DynamicCache(), DynamicCache())
        self.self_attention_cache.layers = [InPlaceLayer(buffer) for buffer in self.self_buffer]
        if cross_buffer is not None:
            self.cross_attention_cache.layers = [InPlaceLayer(buffer) for buffer in cross_buffer]
        self.is_updated = dict.fromkeys(range(shape.layers), False)

    @functools.cached_property
    def cross_bags(self) -> Bags:
        """Which rows of `cross_values` a sum per sequence and head takes: all its frames."""
        return consecutive(self.shape.batch * self.shape.heads, self.shape.frames)

    def set_lengths(self, length: int) -> None:
        """Say how far the loop has written the buffers, so that Transformers sees the same: cross-attention whole."""
        for buffer, layer in zip(self.self_buffer, self.self_attention_cache.layers, strict=True):
            layer._bind(buffer, length)
        if self.cross_buffer is not None:
            for buffer, layer in zip(self.cross_buffer, self.cross_attention_cache.layers, strict=True):
                layer._bind(buffer, self.shape.frames)
        self.is_updated = dict.fromkeys(range(self.shape.layers), self.cross_buffer is not None)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the self-attention part alone: the beams of one audio share its frames."""
        self.self_attention_cache.reorder_cache(beam_idx)
