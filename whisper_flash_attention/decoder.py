"""A decoder bound to the buffers of one call, so that a loop has only tokens to hand it."""

import sys
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from . import kernels
from .cpu_step import MOST_ROWS, CompiledStep
from .decode_step import causal_mask, run_decoder
from .kv_cache import WhisperKVCache
from .weights import DecoderWeights


class PaddedPrompt(NamedTuple):
    """Prompts of different lengths in one batch.

    Attributes:
        mask: `(batch, prompt)`, True at the prompt's tokens, False at its padding.
        places: `(batch, prompt)`, the position of each token.
    """

    mask: Tensor
    places: Tensor

    def take(self, rows: slice) -> Self:
        """Those of some sequences."""
        return self._replace(mask=self.mask[rows], places=self.places[rows])

    def first(self) -> Tensor | None:
        """The place of each prompt's first token, `(batch,)`; None where padding is not only in front."""
        first = (~self.mask).sum(dim=1)
        behind = torch.arange(self.mask.shape[1], device=self.mask.device) >= first[:, None]
        return first if torch.equal(self.mask, behind) else None

    def visible(self) -> Tensor:
        """Which tokens of the prompt each of them sees, `(batch, 1, prompt, prompt)`."""
        prompt, device = self.mask.shape[1], self.mask.device
        earlier = torch.ones(prompt, prompt, dtype=torch.bool, device=device).tril()
        # Padding sees itself: nobody looks at what comes of it, but a softmax over nothing is not a number.
        itself = torch.eye(prompt, dtype=torch.bool, device=device)
        return (self.mask[:, None, None, :] & earlier) | itself


class Padding(NamedTuple):
    """What padded prompts mean for every later token.

    Attributes:
        hidden: `(batch, 1, 1, capacity)`, added to scores, hides the padding.
        shift: `(batch,)`, from a token's place in the cache to its position.
    """

    hidden: Tensor
    shift: Tensor

    @classmethod
    def of_prompt(cls, prompt: PaddedPrompt, capacity: int, dtype: torch.dtype) -> Self:
        """Make it for a cache of `capacity` positions."""
        batch, length = prompt.mask.shape
        hidden = torch.zeros(batch, 1, 1, capacity, dtype=dtype, device=prompt.mask.device)
        hidden[:, 0, 0, :length].masked_fill_(~prompt.mask, torch.finfo(dtype).min)
        return cls(hidden, prompt.places[:, -1] - (length - 1))


@dataclass
class Decoder:
    """The decoder of one call.

    Attributes:
        weights: What it is made of.
        cache: Its keys and values.
        states: The encoder states, where the cache stores no cross keys and values.
        prompt: What is padded; None where nothing is.
        padding: The same for later tokens.
        compiled: The compiled step, where it serves.
    """

    weights: DecoderWeights
    cache: WhisperKVCache
    states: Tensor | None
    prompt: PaddedPrompt | None = None
    padding: Padding | None = None

    def __post_init__(self) -> None:
        capacity, buffer = self.cache.shape.capacity, self.cache.self_buffer
        self._positions = torch.arange(capacity, device=buffer.device)
        if self.prompt is not None:
            self.padding = Padding.of_prompt(self.prompt, capacity, buffer.dtype)
        self.compiled = None if self.states is not None else CompiledStep.bind(self.weights, self.cache)
        # In half precision without hardware PyTorch's products are no better at many rows either.
        self._most_rows = sys.maxsize if kernels.upcasts(buffer) else MOST_ROWS
        self._first = None
        if self.compiled is not None and self.prompt is not None:
            self._first = self.prompt.first()
            if self._first is None:
                self.compiled = None

    def read_prompt(self, ids: Tensor) -> Tensor:
        """Run the prompt `(batch, prompt)`, write its keys and values, and return `(batch, vocabulary)` logits."""
        length, beams, cache, padded = ids.shape[1], self.cache.shape.beams, self.cache, self.prompt
        dtype, device = cache.self_buffer.dtype, ids.device
        # The beams of one audio have one prompt: it is read once, for all.
        if self.compiled is not None and ids.numel() // beams <= self._most_rows:
            return self._read_compiled(ids)
        if beams > 1:
            shape = cache.shape._replace(batch=cache.shape.audios, beams=1, capacity=length)
            cache = WhisperKVCache(shape, dtype, device, cache.cross_buffer)
            ids, padded = ids[::beams], None if padded is None else padded.take(slice(None, None, beams))
        if padded is None:
            mask, places = causal_mask(length, length, dtype, device), None
        else:
            visible, places = padded.visible(), padded.places.reshape(-1)
            mask = torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
        positions = self._positions[:length]
        logits = run_decoder(self.weights, cache, ids.reshape(-1), positions, length, mask, self.states, places)
        if beams > 1:
            self.cache.self_buffer[..., :length, :] = cache.self_buffer.repeat_interleave(beams, dim=2)
            logits = logits.repeat_interleave(beams, dim=0)
        return logits

    def _read_compiled(self, ids: Tensor) -> Tensor:
        """`read_prompt` by the compiled step, which writes the first beam's slots."""
        assert self.compiled is not None
        beams, length = self.cache.shape.beams, ids.shape[1]
        places = first = None
        if self.prompt is not None and self._first is not None:
            places = self.prompt.places[::beams]
            # Padding sees itself.
            first = torch.minimum(self._first[::beams, None], self._positions[:length])
        logits = self.compiled(ids[::beams], 0, stride=beams, places=places, first=first)
        if beams == 1:
            return logits
        written = self.cache.self_buffer[..., :length, :].unflatten(2, (-1, beams))
        written[:, :, :, 1:] = written[:, :, :, :1]
        return logits.repeat_interleave(beams, dim=0)

    def step(self, tokens: Tensor, length: int) -> Tensor:
        """Run `tokens`, `(batch,)`, the last of sequences of `length`, and return `(batch, vocabulary)` logits."""
        if self.compiled is not None:
            places = first = None
            if self.padding is not None and self._first is not None:
                places, first = (self.padding.shift + (length - 1))[:, None], self._first[:, None]
            return self.compiled(tokens[:, None], length - 1, places=places, first=first)
        position, mask, places = self._positions[length - 1 : length], None, None
        if self.padding is not None:
            mask, places = self.padding.hidden[..., :length], self.padding.shift + position
        return run_decoder(self.weights, self.cache, tokens, position, length, mask, self.states, places)
