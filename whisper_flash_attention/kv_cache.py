"""Keys and values, written in place.

`WhisperKVCache` is at once the storage of the decoding loop (one buffer for all layers, whose views the step
multiplies) and the cache that Transformers passes around: layers, lengths, reordering and cropping work on the same
memory. `InPlaceCache` is the latter alone, for calls that go to Transformers' loops. Nothing is concatenated, and
nothing but the new tokens is copied per step, or what beams have written where they change places.
"""

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer


class CacheShape(NamedTuple):
    """Dimensions of a cache.

    Attributes:
        layers: Decoder layers.
        batch: Sequences.
        heads: Attention heads.
        head_dim: Features per head.
        capacity: Decoder positions that fit.
        frames: Encoder positions.
        beams: Sequences that follow one another and belong to one audio, whose cross keys and values they share.
    """

    layers: int
    batch: int
    heads: int
    head_dim: int
    capacity: int
    frames: int
    beams: int = 1

    @property
    def audios(self) -> int:
        """Audios, which have `beams` sequences each."""
        return self.batch // self.beams


class InPlaceLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer whose keys and values are views of the written part of a preallocated buffer.

    Args:
        buffer: `(2, batch, heads, capacity, head_dim)`, keys then values; where it is None, it is made for the first
            keys and values, like them and where they are.
        length: Positions already written.
        capacity: Positions of a buffer that is yet to be made.
    """

    def __init__(self, buffer: Tensor | None = None, length: int = 0, *, capacity: int = 0) -> None:
        super().__init__()
        self._capacity = capacity
        if buffer is not None:
            self._take(buffer, length)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffer for the first keys and values `(batch, heads, new, head_dim)`."""
        batch, heads, new, head_dim = key_states.shape
        self._take(key_states.new_empty(2, batch, heads, max(self._capacity, new), head_dim), 0)

    def _take(self, buffer: Tensor, length: int) -> None:
        self.dtype, self.device = buffer.dtype, buffer.device
        self.is_initialized = True
        self._bind(buffer, length)

    def _bind(self, buffer: Tensor, length: int) -> None:
        self.buffer = buffer
        self.keys, self.values = buffer[0, :, :, :length], buffer[1, :, :, :length]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values `(batch, heads, new, head_dim)` behind the old ones; return all written."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
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
        return int(self.keys.shape[2]) if self.is_initialized else 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last positions; they are given as a negative number, as Transformers does."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of positions to remove, not {tokens_to_remove}.")
        if self.is_initialized:
            self._bind(self.buffer, max(self.get_seq_length() + tokens_to_remove, 0))

    def reset(self) -> None:
        """Forget everything; the buffer stays."""
        if self.is_initialized:
            self._bind(self.buffer, 0)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give row i what row `beam_idx[i]` holds, written part only."""
        length = self.get_seq_length()
        if length:
            written = self.buffer[:, :, :, :length]
            written.copy_(written.index_select(1, beam_idx.to(self.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times."""
        if self.is_initialized:
            self._bind(self.buffer.repeat_interleave(repeats, dim=1), self.get_seq_length())

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences `indices`."""
        if self.is_initialized:
            self._bind(self.buffer[:, indices], self.get_seq_length())


class InPlaceCache(EncoderDecoderCache):  # type: ignore[misc]
    """A cache written in place, for Transformers' own loops.

    Args:
        self_layers: Of the self-attention.
        cross_layers: Of the cross-attention.
    """

    def __init__(self, self_layers: list[InPlaceLayer], cross_layers: list[InPlaceLayer]) -> None:
        super().__init__(DynamicCache(), DynamicCache())
        self.self_attention_cache.layers, self.cross_attention_cache.layers = self_layers, cross_layers
        self.is_updated = dict.fromkeys(range(len(self_layers)), False)

    @classmethod
    def with_capacity(cls, layers: int, capacity: int, frames: int) -> Self:
        """Make one whose buffers come into being with the first keys and values, layer by layer.

        Args:
            layers: Decoder layers.
            capacity: Decoder positions that fit.
            frames: Encoder positions.
        """
        return cls(
            [InPlaceLayer(capacity=capacity) for _ in range(layers)],
            [InPlaceLayer(capacity=frames) for _ in range(layers)],
        )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the self-attention part alone: the beams of one audio share its frames."""
        self.self_attention_cache.reorder_cache(beam_idx)


class CrossBuffer(NamedTuple):
    """The cross-attention's keys and values, each in the order in which the products with one query read it.

    They are one piece of memory, so that something else can use it as long as there is nothing to store.

    Attributes:
        keys_t: `(layers, audios, heads, head_dim, frames)`.
        values: `(layers, audios, heads, frames, head_dim)`.
    """

    keys_t: Tensor
    values: Tensor

    @classmethod
    def empty(cls, shape: CacheShape, dtype: torch.dtype, device: torch.device) -> Self:
        """Make room for them."""
        outer = (shape.layers, shape.audios, shape.heads)
        keys_t, values = torch.empty(2, *outer, shape.head_dim, shape.frames, dtype=dtype, device=device).unbind()
        return cls(keys_t, values.view(*outer, shape.frames, shape.head_dim))

    @property
    def memory(self) -> Tensor:
        """What both are stored in, flat."""
        return self.keys_t.as_strided((self.keys_t.numel() + self.values.numel(),), (1,))

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.keys_t.nbytes + self.values.nbytes


class WhisperKVCache(InPlaceCache):
    """The cache of one `generate` call, which the decoding loop and Transformers share.

    Args:
        shape: Its dimensions.
        dtype: Of keys and values.
        device: Where they live.
        cross_buffer: The cross-attention's keys and values. Where it is None the cross part is empty, and the loop
            attends to the encoder states themselves.

    Attributes:
        self_buffer: `(layers, 2, batch, heads, capacity, head_dim)`, keys then values.
        cross_buffer: The cross-attention's keys and values, or None.
        self_layers: Per layer keys and values, `(batch, heads, capacity, head_dim)` each; these and the following are
            views made once, since making them per layer and token costs more than some of the products they feed.
        self_keys, self_values: `(layers, batch, heads, capacity, head_dim)`.
        cross_keys_t: Per layer `(audios · heads, head_dim, frames)`.
        cross_values: Per layer `(audios · heads, frames, head_dim)`.
    """

    def __init__(
        self, shape: CacheShape, dtype: torch.dtype, device: torch.device, cross_buffer: CrossBuffer | None
    ) -> None:
        self.shape = shape
        self.self_buffer = torch.empty(
            shape.layers, 2, shape.batch, shape.heads, shape.capacity, shape.head_dim, dtype=dtype, device=device
        )
        self.cross_buffer = cross_buffer
        self.self_keys, self.self_values = self.self_buffer.unbind(1)
        self.self_layers = tuple(zip(self.self_keys.unbind(), self.self_values.unbind(), strict=True))
        self.cross_keys_t: tuple[Tensor, ...] = ()
        self.cross_values: tuple[Tensor, ...] = ()
        if cross_buffer is not None:
            self.cross_keys_t, self.cross_values = (part.flatten(1, 2).unbind() for part in cross_buffer)
        super().__init__(
            [InPlaceLayer(buffer) for buffer in self.self_buffer],
            [InPlaceLayer() for _ in self.cross_keys_t],
        )

    def set_lengths(self, length: int) -> None:
        """Say how far the loop has written the buffers, so that Transformers sees the same: cross-attention whole."""
        for buffer, layer in zip(self.self_buffer, self.self_attention_cache.layers, strict=True):
            layer._bind(buffer, length)
        if self.cross_buffer is not None:
            beams = self.shape.beams
            for keys_t, values, layer in zip(*self.cross_buffer, self.cross_attention_cache.layers, strict=True):
                buffer = torch.stack((keys_t.transpose(2, 3), values))
                if beams > 1:  # to Transformers every sequence has its own
                    buffer = buffer.repeat_interleave(beams, dim=1)
                layer._take(buffer, self.shape.frames)
        self.is_updated = dict.fromkeys(range(self.shape.layers), self.cross_buffer is not None)

    def reorder(self, rows: Tensor, length: int) -> None:
        """Give sequence i what sequence `rows[i]` holds in its first `length` positions, in all layers at once."""
        written = self.self_buffer[..., :length, :]
        written.copy_(written.index_select(2, rows))
