"""The decoder: what comes before the first step, and one step at a given length of the cache.

The encoder's output is made up, so that only the decoder is measured. ``Stepper`` says what both have to be able to
do; Transformers' classes do it through ``forward`` and its dynamic cache, which is what their ``generate`` calls;
flash does it as its own loop behind ``generate`` does, with a captured graph on CUDA.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from perf_tests.matrix.cases import ENCODER_POSITIONS, MAX_TARGET_POSITIONS
from perf_tests.matrix.vocabulary import vocabulary_of

from .component import Component, stores_cross


class Stepper(Protocol):
    """One implementation's decoder with the encoder's output beside it."""

    def prefill(self, ids: Tensor) -> Tensor:
        """From encoder states to the last logits (batch, vocabulary) behind ``ids`` (batch, prompt)."""

    def fill(self, ids: Tensor) -> None:
        """Run ``ids`` (batch, cached), so that the cache holds them."""

    def step(self, tokens: Tensor) -> Any:
        """Run ``tokens`` (batch,) behind what ``fill`` left, again with each call. What is timed."""

    def logits(self, tokens: Tensor) -> Tensor:
        """The same for its logits, (batch, vocabulary)."""

    def uncaptured(self) -> Any:
        """A context in which a step runs operator by operator."""


class OriginalStepper:
    """Transformers' decoder, whatever its attention."""

    def __init__(self, model: Any, states: Tensor) -> None:
        self.model = model
        self.encoded = BaseModelOutput(last_hidden_state=states)
        self._kept: list[tuple[Any, Tensor, Tensor]] = []
        self._cache: EncoderDecoderCache | None = None

    def prefill(self, ids: Tensor) -> Tensor:
        """Run the prompt with an empty cache."""
        logits: Tensor = self._run(ids, EncoderDecoderCache(DynamicCache(), DynamicCache()))[:, -1]
        return logits

    def fill(self, ids: Tensor) -> None:
        """Fill a cache, and remember its self-attention's part, to which ``step`` appends."""
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        # Without the projection to the vocabulary, whose logits for all of `ids` nobody wants.
        self.model.get_decoder()(
            input_ids=ids,
            encoder_hidden_states=self.encoded.last_hidden_state,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._kept = [(layer, layer.keys, layer.values) for layer in self._cache.self_attention_cache.layers]

    def step(self, tokens: Tensor) -> Tensor:
        """The logits of one more token."""
        for layer, keys, values in self._kept:
            layer.keys, layer.values = keys, values
        return self._run(tokens[:, None], self._cache)[:, -1]

    logits = step

    @contextmanager
    def uncaptured(self) -> Iterator[None]:
        """Nothing is captured."""
        yield

    def _run(self, ids: Tensor, cache: EncoderDecoderCache | None) -> Tensor:
        output = self.model(encoder_outputs=self.encoded, decoder_input_ids=ids, past_key_values=cache, use_cache=True)
        logits: Tensor = output.logits
        return logits


class FlashStepper:
    """This project's decoding loop, taken apart at the seams that it has itself."""

    def __init__(self, model: Any, states: Tensor) -> None:
        self.model, self.encoded = model, states
        self._stores_cross = stores_cross(model, len(states), MAX_TARGET_POSITIONS)
        # Where generate captures its steps; on a CPU a session steps too, which the tests use.
        self.captures = states.device.type == "cuda"
        self.uses_session = self.captures
        self._session: Any = None
        self._decoder: Any = None
        self._length = 0

    def prefill(self, ids: Tensor) -> Tensor:
        """Project the cross-attention's keys and values, where they are stored, and run the prompt."""
        logits: Tensor = self._decoder_of(self.model.decoder_weights(), MAX_TARGET_POSITIONS).read_prompt(ids)
        return logits

    def fill(self, ids: Tensor) -> None:
        """Fill a cache of one position more; on CUDA that of a session, which captures the step."""
        from whisper_flash_attention.captured_decoding import on_decoding_stream

        with on_decoding_stream(self.encoded.device):
            self._fill(ids)
        compiled = getattr(self._decoder, "compiled", None) is not None and not self.uses_session
        self.model.note_decoding(
            self._decoder.cache, captured=self.captures, **({"compiled": True} if compiled else {})
        )

    def _fill(self, ids: Tensor) -> None:
        from whisper_flash_attention.captured_decoding import GreedySession

        self._length = ids.shape[1]
        weights = self.model.decoder_weights()
        if self.uses_session:
            self._session = GreedySession(
                weights,
                self._shape(self._length + 1),
                None,
                None,
                stores_cross=self._stores_cross,
                captures=self.captures,
            )
            if self._session.states is not None:
                self._session.hold_states(self.encoded)
            self._decoder = self._decoder_over(weights, self._session.cache)
        else:
            self._decoder = self._decoder_of(weights, self._length + 1)
        self._decoder.read_prompt(ids)

    def step(self, tokens: Tensor) -> Tensor:
        """The logits of one more token; on CUDA the tokens that a session holds, the chosen one last."""
        from whisper_flash_attention.captured_decoding import on_decoding_stream

        if self._session is None:
            return self.logits(tokens)
        with on_decoding_stream(self.encoded.device):
            self._session.start(tokens, self._length + 1)
            self._session.run(self._length + 1, self._length + 2, None)
        ids: Tensor = self._session.ids
        return ids

    def logits(self, tokens: Tensor) -> Tensor:
        """The logits of one more token."""
        logits: Tensor = self._decoder.step(tokens, self._length + 1)
        return logits

    @contextmanager
    def uncaptured(self) -> Iterator[None]:
        """Let the session step without its graph."""
        if self._session is not None:
            self._session.captures = False
        try:
            yield
        finally:
            if self._session is not None:
                self._session.captures = self.captures

    def _shape(self, capacity: int) -> Any:
        from whisper_flash_attention.kv_cache import CacheShape

        config = self.model.config
        return CacheShape(
            layers=config.decoder_layers,
            batch=len(self.encoded),
            heads=config.decoder_attention_heads,
            head_dim=config.d_model // config.decoder_attention_heads,
            capacity=capacity,
            frames=ENCODER_POSITIONS,
        )

    def _decoder_of(self, weights: Any, capacity: int) -> Any:
        from whisper_flash_attention.kv_cache import CrossBuffer, WhisperKVCache

        shape, dtype, device = self._shape(capacity), self.encoded.dtype, self.encoded.device
        buffer = CrossBuffer.empty(shape, dtype, device) if self._stores_cross else None
        return self._decoder_over(weights, WhisperKVCache(shape, dtype, device, buffer))

    def _decoder_over(self, weights: Any, cache: Any) -> Any:
        from whisper_flash_attention.decode_step import project_cross
        from whisper_flash_attention.decoder import Decoder as FlashDecoder

        if cache.cross_buffer is not None:
            project_cross(weights, cache.cross_buffer, self.encoded, 0)
        return FlashDecoder(weights, cache, None if self._stores_cross else self.encoded)


class Decoder(Component):
    """What prefill and step share: a stepper, made in the warm-up, so that its memory counts."""

    def prepare(self) -> None:
        """Make the encoder's output up."""
        self.states = self.random_states(ENCODER_POSITIONS)
        self._stepper: Stepper | None = None

    @property
    def positions(self) -> int:
        """As many as there are: that is what ``generate`` prepares for where it is not told otherwise."""
        return MAX_TARGET_POSITIONS

    def stepper(self) -> Stepper:
        """The implementation's stepper."""
        if self._stepper is None:
            kind = FlashStepper if hasattr(self.model, "decoder_weights") else OriginalStepper
            self._stepper = kind(self.model, self.states)
        return self._stepper


class Prefill(Decoder):
    """From encoder states to the logits behind the prompt that ``generate`` starts from."""

    def prepare(self) -> None:
        """Make the prompt."""
        super().prepare()
        prompt = torch.tensor(vocabulary_of(self.dims.vocab_size).prompt, device=self.place.device)
        self.prompt = prompt.expand(self.work.batch_size, -1).contiguous()

    @torch.no_grad()
    def compute(self) -> Tensor:
        """The logits, (batch, vocabulary)."""
        return self.stepper().prefill(self.prompt)

    def outputs(self) -> tuple[Tensor, ...]:
        """The same."""
        return (self.compute(),)


class DecodeStep(Decoder):
    """One token behind a cache of the work's length, to its logits."""

    def prepare(self) -> None:
        """Make the tokens of the cache, and the one behind them."""
        super().prepare()
        ids = self.random_tokens(self.work.cache_length + 1)
        self.cached, self.last = ids[:, :-1], ids[:, -1].contiguous()

    @torch.no_grad()
    def stepper(self) -> Stepper:
        """The stepper, with its cache filled."""
        is_new = self._stepper is None
        stepper = super().stepper()
        if is_new:
            stepper.fill(self.cached)
        return stepper

    @torch.no_grad()
    def compute(self) -> Any:
        """What the step gives."""
        return self.stepper().step(self.last)

    @torch.no_grad()
    def outputs(self) -> tuple[Tensor, ...]:
        """The logits, (batch, vocabulary)."""
        return (self.stepper().logits(self.last),)

    def uncaptured(self) -> Any:
        """Step operator by operator."""
        return self.stepper().uncaptured()
