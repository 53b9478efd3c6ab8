"""The decoder taken a step at a time, by the code that `generate` runs: to measure it, and for loops of one's own."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from .captured_decoding import GreedySession, captures_on, on_decoding_stream
from .decoder import Decoder
from .encoding import encode
from .kv_cache import CacheShape, WhisperKVCache

if TYPE_CHECKING:
    from .modeling_whisper_flash_attention import WhisperFlashAttentionForConditionalGeneration


class WhisperDecodingStepper:
    """The decoder behind a batch of encoded audio, with its keys and values. For inference alone.

    Args:
        model: The model; its weights are read where they lie now.
        encoder_hidden_states: `(batch, frames, d_model)`, in the model's dtype and on its device.
        max_length: Tokens that there will be, prompt included, at most `config.max_target_positions`.
        captures: Whether `greedy_step` may be a CUDA graph, as `generate`'s steps are.

    Attributes:
        length: Tokens read so far. Set it back to forget the later ones.

    Raises:
        ValueError: `max_length` is more than the model has positions for, or none.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: "WhisperFlashAttentionForConditionalGeneration",
        encoder_hidden_states: Tensor,
        max_length: int,
        *,
        captures: bool = True,
    ) -> None:
        positions = model.config.max_target_positions
        if not 1 <= max_length <= positions:
            raise ValueError(f"max_length is {max_length}; the model has positions for 1 to {positions} tokens.")
        self.length = 0
        self._model, self._device, self._session = model, encoder_hidden_states.device, None
        weights = model.decoder_weights()
        batch, frames, width = encoder_hidden_states.shape
        shape = CacheShape(len(weights.layers), batch, weights.heads, width // weights.heads, max_length, frames)
        stores_cross = model.stores_cross_attention(batch)
        with on_decoding_stream(self._device):
            if captures and captures_on(self._device):
                self._session = GreedySession(weights, shape, None, None, stores_cross=stores_cross, captures=True)
            outputs = BaseModelOutput(last_hidden_state=encoder_hidden_states)
            cross_buffer, states = encode(model, weights, outputs, None, shape, stores_cross, self._session)
            if self._session is not None:
                cache = self._session.cache
            else:
                cache = WhisperKVCache(shape, encoder_hidden_states.dtype, self._device, cross_buffer)
            self._decoder = Decoder(weights, cache, states)
        compiled = self._session is None and self._decoder.compiled is not None
        model.note_decoding(cache, captured=self._session is not None, compiled=compiled)

    @torch.no_grad()
    def read_prompt(self, ids: Tensor) -> Tensor:
        """Read `(batch, prompt)` tokens from the beginning; return the `(batch, vocabulary)` logits behind them."""
        with on_decoding_stream(self._device):
            logits = self._decoder.read_prompt(ids)
        self.length = ids.shape[1]
        return logits

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token per sequence, `(batch,)`; return the `(batch, vocabulary)` logits behind it."""
        with on_decoding_stream(self._device):
            logits = self._decoder.step(tokens, self.length + 1)
        self.length += 1
        return logits

    @torch.no_grad()
    def greedy_step(self, tokens: Tensor) -> Tensor:
        """The same, for the most likely tokens, `(batch,)`; on CUDA a graph, whose next step overwrites them."""
        session = self._session
        if session is None:
            return self.step(tokens).argmax(dim=-1)
        read = self.length + 1
        with on_decoding_stream(self._device):
            session.captures = self._model._captures
            session.start(tokens, read)
            session.run(read, read + 1, None)
        self.length = read
        return session.ids[:, read]
