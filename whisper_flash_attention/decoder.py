"""A decoder bound to the buffers of one call, so that a loop has only tokens to hand it."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from .decode_step import causal_mask, run_decoder
from .kv_cache import WhisperKVCache
from .packed_states import States
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
    """

    weights: DecoderWeights
    cache: WhisperKVCache
    states: States | None
    prompt: PaddedPrompt | None = None
    padding: Padding | None = None

    def __post_init__(self) -> None:
        capacity, buffer = self.cache.shape.capacity, self.cache.self_buffer
        self._positions = torch.arange(capacity, device=buffer.device)
        if self.prompt is not None:
            self.padding = Padding.of_prompt(self.prompt, capacity, buffer.dtype)

    def read_prompt(self, ids: Tensor) -> Tensor:
        """Run the prompt `(batch, prompt)`, write its keys and values, and return `(batch, vocabulary)` logits."""
        length, beams, cache, padded = ids.shape[1], self.cache.shape.beams, self.cache, self.prompt
        dtype, device = cache.self_buffer.dtype, ids.device
        if beams > 1:
            # The beams of one audio have one prompt: it is read once, for all.
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

    def step(self, tokens: Tensor, length: int) -> Tensor:
        """Run `tokens`, `(batch,)`, the last of sequences of `length`, and return `(batch, vocabulary)` logits."""
        position, mask, places = self._positions[length - 1 : length], None, None
        if self.padding is not None:
            mask, places = self.padding.hidden[..., :length], self.padding.shift + position
        return run_decoder(self.weights, self.cache, tokens, position, length, mask, self.states, places)
