"""The decoder: what comes before the first step, and one step at a given length of the cache.

The encoder's output is made up, so that only the decoder is measured. Transformers' classes run it through ``forward``
and its dynamic cache, which is what their ``generate`` calls; flash by its ``WhisperDecodingStepper``, which runs what
its ``generate`` does, a captured graph on CUDA included.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from perf_tests.matrix.cases import ENCODER_POSITIONS, MAX_TARGET_POSITIONS
from perf_tests.matrix.vocabulary import vocabulary_of

from .component import Component


class OriginalStepper:
    """Transformers' decoder, whatever its attention, with what of ``WhisperDecodingStepper`` is used here."""

    def __init__(self, model: Any, states: Tensor) -> None:
        self.model = model
        self.encoded = BaseModelOutput(last_hidden_state=states)
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self._kept: list[tuple[Any, Tensor, Tensor]] = []

    def read_prompt(self, ids: Tensor) -> Tensor:
        """Run the prompt, (batch, prompt), with an empty cache; return the logits behind it, (batch, vocabulary)."""
        return self._run(ids)[:, -1]

    def fill(self, ids: Tensor) -> None:
        """Fill the cache, and remember its self-attention's part, to which ``step`` appends."""
        # Without the projection to the vocabulary, whose logits for all of `ids` nobody wants.
        self.model.get_decoder()(
            input_ids=ids,
            encoder_hidden_states=self.encoded.last_hidden_state,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._kept = [(layer, layer.keys, layer.values) for layer in self._cache.self_attention_cache.layers]

    def step(self, tokens: Tensor) -> Tensor:
        """The logits of one more token, behind what ``fill`` left."""
        for layer, keys, values in self._kept:
            layer.keys, layer.values = keys, values
        return self._run(tokens[:, None])[:, -1]

    def _run(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(
            encoder_outputs=self.encoded, decoder_input_ids=ids, past_key_values=self._cache, use_cache=True
        ).logits
        return logits


class Decoder(Component):
    """What prefill and step share: made-up encoder states, and the implementation's stepper over them."""

    def prepare(self) -> None:
        """Make the encoder's output up."""
        self.states = self.random_states(ENCODER_POSITIONS)

    @property
    def positions(self) -> int:
        """As many as there are: that is what ``generate`` prepares for where it is not told otherwise."""
        return MAX_TARGET_POSITIONS

    @property
    def is_flash(self) -> bool:
        """Whether the model is this project's."""
        return self.implementation == "flash"

    def flash_stepper(self, max_length: int, **kind: bool) -> Any:
        """The package's; its commits before it had one cannot be measured."""
        from whisper_flash_attention import WhisperDecodingStepper

        return WhisperDecodingStepper(self.model, self.states, max_length, **kind)


class Prefill(Decoder):
    """From encoder states to the logits behind the prompt that ``generate`` starts from."""

    def prepare(self) -> None:
        super().prepare()
        prompt = torch.tensor(vocabulary_of(self.dims.vocab_size).prompt, device=self.place.device)
        self.prompt = prompt.expand(self.work.batch_size, -1).contiguous()

    @torch.no_grad()
    def compute(self) -> Tensor:
        """The logits, (batch, vocabulary); cross-attention's keys and values are projected first, where stored."""
        if self.is_flash:
            stepper = self.flash_stepper(MAX_TARGET_POSITIONS, captures=False)
        else:
            stepper = OriginalStepper(self.model, self.states)
        logits: Tensor = stepper.read_prompt(self.prompt)
        return logits

    def outputs(self) -> tuple[Tensor, ...]:
        return (self.compute(),)


class DecodeStep(Decoder):
    """One token behind a cache of the work's length, to its logits; on CUDA to the token that flash chooses."""

    def prepare(self) -> None:
        """Make the tokens of the cache, and the one behind them."""
        super().prepare()
        ids = self.random_tokens(self.work.cache_length + 1)
        self.cached, self.last = ids[:, :-1], ids[:, -1].contiguous()
        self._stepper: Any = None

    @torch.no_grad()
    def stepper(self) -> Any:
        """The stepper with its cache filled, made in the warm-up, so that its memory counts."""
        if self._stepper is None and self.is_flash:
            self._stepper = self.flash_stepper(self.work.cache_length + 1)
            self._stepper.read_prompt(self.cached)
        elif self._stepper is None:
            self._stepper = OriginalStepper(self.model, self.states)
            self._stepper.fill(self.cached)
        if self.is_flash:
            self._stepper.length = self.work.cache_length
        return self._stepper

    @torch.no_grad()
    def compute(self) -> Any:
        stepper = self.stepper()
        return (stepper.greedy_step if self.is_flash and self.place.device.type == "cuda" else stepper.step)(self.last)

    @torch.no_grad()
    def outputs(self) -> tuple[Tensor, ...]:
        return (self.stepper().step(self.last),)
