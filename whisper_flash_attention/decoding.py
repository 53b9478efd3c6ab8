"""The decoding loop behind `generate`.

`decode` is the callable that goes into Transformers' public hook, `generate(custom_generate=…)`. Transformers has
then prepared prompt, logits processors and stopping criteria, and `decode` returns what its own loop would: greedy
search and sampling, with scores and logits where asked. What it does not handle it refuses with `NotHandledError`,
before anything has happened, and the caller takes Transformers' loop.
"""

from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    EncoderDecoderCache,
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)
from transformers.generation import GenerateEncoderDecoderOutput
from transformers.modeling_outputs import BaseModelOutput

from .captured_decoding import hand_over
from .decode_step import causal_mask, project_cross, run_decoder
from .flash_attention import ATTENTION_NAME
from .kv_cache import CacheShape, WhisperKVCache, empty_cross_buffer
from .layout import DecoderWeights
from .logits import ScoreProcessor

if TYPE_CHECKING:
    from .captured_decoding import GreedySession
    from .modeling_whisper_flash_attention import WhisperFlashAttentionForConditionalGeneration

ENCODER_ROWS = {"cpu": 1, "cuda": 8}
"""Audios encoded at a time, per device type: the encoder's activations would otherwise set the peak of a batch, and
one audio of 1500 frames fills a CPU already."""


class NotHandledError(Exception):
    """The loop does not handle this call; Transformers' own does."""


class DeferredEncoderOutputs(BaseModelOutput):  # type: ignore[misc]
    """Stands for encoder outputs that the loop will compute: the right shape, no memory."""


@dataclass
class GenerateCall:
    """What one call of `generate` knows about itself.

    Attributes:
        model: Whose call it is: a processor may well call another model.
        fast: Whether the loop may be used.
        keeps_states: Whether encoder states are kept for another pass over the same audio (temperature fallback).
        features: `(batch, mel_bins, frames)`, the features that `states` belong to.
        states: `(batch, positions, d)`, encoder states at hand.
    """

    model: "WhisperFlashAttentionForConditionalGeneration"
    fast: bool
    keeps_states: bool = False
    features: Tensor | None = None
    states: Tensor | None = None

    def states_of(self, features: Tensor) -> Tensor | None:
        """The states of `features`, where all of them have been encoded before."""
        if self.features is None or self.states is None or self.features.shape[1:] != features.shape[1:]:
            return None
        rows = []
        for feature in features:
            same = [i for i, known in enumerate(self.features) if torch.equal(feature, known)]
            if not same:
                return None
            rows.append(same[0])
        return self.states if rows == list(range(len(self.states))) else self.states[rows]


current_call: ContextVar[GenerateCall | None] = ContextVar("current_call", default=None)


def call_of(model: "WhisperFlashAttentionForConditionalGeneration") -> GenerateCall | None:
    """The call of `generate` that `model` is in, if the innermost one is its own."""
    call = current_call.get()
    return call if call is not None and call.model is model else None


@dataclass
class Stopping:
    """Stopping criteria, sorted.

    Attributes:
        max_length: Tokens, prompt included, at which decoding ends.
        eos: `(n,)`, ids that end a sequence, or None.
        others: Every other criterion, called after each token.
    """

    max_length: int
    eos: Tensor | None
    others: StoppingCriteriaList

    @classmethod
    def from_criteria(cls, criteria: StoppingCriteriaList, limit: int, device: torch.device) -> "Stopping":
        """Sort a list; without a maximum length, `limit` ends decoding as the position embedding does."""
        max_length, eos, others = limit, None, StoppingCriteriaList()
        for criterion in criteria:
            if type(criterion) is MaxLengthCriteria:
                max_length = min(max_length, criterion.max_length)
            elif type(criterion) is EosTokenCriteria and eos is None:
                eos = criterion.eos_token_id.to(device).flatten()
            else:
                others.append(criterion)
        return cls(max_length, eos, others)


def decode(
    model: "WhisperFlashAttentionForConditionalGeneration",
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    inputs_tensor: Tensor | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateEncoderDecoderOutput:
    """Decode greedily or by sampling, as `generate` was asked to.

    Args:
        model: The model.
        input_ids: `(batch, prompt)`, the decoder's prompt.
        logits_processor: Applied to the scores of each step, in order.
        stopping_criteria: Any of them ends a sequence.
        generation_config: The prepared configuration.
        inputs_tensor: `(batch, mel_bins, frames)`, the audio, encoded here where the encoder outputs are deferred.
        model_kwargs: Encoder outputs and the rest of what Transformers prepared.

    Returns:
        `(batch, length)` token ids, or the output object where `return_dict_in_generate` is set.

    Raises:
        NotHandledError: Transformers' loop must take this call.
    """
    _refuse_unknown(model, generation_config, model_kwargs)
    device, (batch, prompt) = input_ids.device, input_ids.shape
    stopping = Stopping.from_criteria(stopping_criteria, model.config.max_target_positions, device)
    if not prompt < stopping.max_length <= model.config.max_target_positions:
        raise NotHandledError("max_length")
    weights = model.decoder_weights()
    chooser = TokenChooser.from_config(generation_config, logits_processor, stopping, weights.projection)

    config = model.config
    shape = CacheShape(
        layers=config.decoder_layers,
        batch=batch,
        heads=config.decoder_attention_heads,
        head_dim=config.d_model // config.decoder_attention_heads,
        capacity=stopping.max_length - 1,
        frames=config.max_source_positions,
    )
    as_dict = bool(generation_config.return_dict_in_generate)
    stores_cross = as_dict or model.stores_cross_attention(batch)
    captures = device.type == "cuda" and chooser.is_capturable and not as_dict
    call = call_of(model)
    with model.greedy_session(shape, chooser, stores_cross=stores_cross, captures=captures) as session:
        hand_over(call.states if call else None)
        cross_buffer, states = _encode(
            model, weights, model_kwargs["encoder_outputs"], inputs_tensor, shape, stores_cross, session
        )
        if session is not None:
            cache, ids = session.cache, session.ids
        else:
            cache = WhisperKVCache(shape, weights.projection.dtype, device, cross_buffer)
            ids = torch.empty(batch, stopping.max_length, dtype=torch.long, device=device)

        ids[:, :prompt] = input_ids
        positions = torch.arange(stopping.max_length, device=device)
        mask = causal_mask(prompt, prompt, weights.projection.dtype, device)
        logits = run_decoder(weights, cache, input_ids.reshape(-1), positions[:prompt], prompt, mask, states)
        tokens = chooser.choose(ids, prompt, logits)
        length = prompt + 1
        if session is not None:
            session.start(tokens, length)
            length = session.run(length, stopping.max_length, chooser.processor.suppression)
        else:
            while length < stopping.max_length and not chooser.is_finished():
                position = positions[length - 1 : length]
                logits = run_decoder(weights, cache, tokens, position, length, None, states)
                tokens = chooser.choose(ids, length, logits)
                length += 1
        sequences = ids[:, :length].clone()

    hand_over(sequences, call.states if call else None)
    model.note_decoding(cache, captured=session is not None and session.captures)
    if not as_dict:
        return sequences
    cache.set_lengths(length - 1)
    return GenerateEncoderDecoderOutput(
        sequences=sequences,
        scores=tuple(chooser.scores) if generation_config.output_scores else None,
        logits=tuple(chooser.logits) if generation_config.output_logits else None,
        past_key_values=cache,
    )


@dataclass
class TokenChooser:
    """Turns logits into tokens, step by step, and knows which sequences have ended.

    Attributes:
        processor: The logits processors, prepared.
        stopping: When to stop.
        pad: `()`, the id that follows the end of a sequence.
        samples: Whether to sample; else the likeliest token is taken.
        keeps_scores, keeps_logits: Whether each step's are kept, as float32.
        scores, logits: Those, `(batch, vocabulary)` each.
        unfinished: `(batch,)`, True while a sequence goes on; None until one may have ended.
    """

    processor: ScoreProcessor
    stopping: Stopping
    pad: Tensor | None
    samples: bool
    keeps_scores: bool
    keeps_logits: bool
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    unfinished: Tensor | None = None

    def __post_init__(self) -> None:
        self._eos_ids = set() if self.stopping.eos is None else set(self.stopping.eos.tolist())

    @classmethod
    def from_config(
        cls, config: GenerationConfig, processors: LogitsProcessorList, stopping: Stopping, projection: Tensor
    ) -> "TokenChooser":
        """Prepare a call; `projection` is `(vocabulary, d)`."""
        as_dict = bool(config.return_dict_in_generate)
        keeps_scores, keeps_logits = (
            as_dict and bool(config.output_scores),
            as_dict and bool(config.output_logits),
        )
        return cls(
            processor=ScoreProcessor(processors, projection.shape[0], projection.device),
            stopping=stopping,
            pad=config._pad_token_tensor,
            samples=bool(config.do_sample),
            keeps_scores=keeps_scores,
            keeps_logits=keeps_logits,
        )

    @property
    def is_capturable(self) -> bool:
        """Whether every step is the same few operations, so that a graph can hold it."""
        return self.processor.is_suppression and not (self.samples or self.keeps_scores or self.keeps_logits)

    def choose(self, ids: Tensor, length: int, logits: Tensor) -> Tensor:
        """Choose the next tokens and write them.

        Args:
            ids: `(batch, capacity)`, the first `length` columns written; gets the next.
            length: Tokens so far, prompt included.
            logits: `(batch, vocabulary)`, in the model's dtype.

        Returns:
            `(batch,)` tokens.
        """
        if not self.is_capturable:
            # As in Transformers. Where tokens are only forbidden, the sum with the float32 suppression widens.
            logits = logits.float()
        if self.keeps_logits:
            self.logits.append(logits)
        scores = self.processor(ids, length, logits)
        if self.keeps_scores:
            self.scores.append(scores)
        if self.samples:
            tokens = torch.multinomial(F.softmax(scores, dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = scores.argmax(dim=-1)
        if self.unfinished is not None and self.stopping.eos is not None and self.pad is not None:
            tokens = torch.where(self.unfinished, tokens, self.pad)
        ids[:, length] = tokens
        self._update_unfinished(ids[:, : length + 1], tokens)
        return tokens

    def _update_unfinished(self, ids: Tensor, tokens: Tensor) -> None:
        """Find out which sequences go on after `tokens`, without a look where none can have ended."""
        goes_on = self.unfinished
        eos = self.stopping.eos
        if eos is not None and not self.processor.forbids(self._eos_ids, ids.shape[1] - 1):
            others = tokens != eos if len(eos) == 1 else torch.isin(tokens, eos, invert=True)
            goes_on = others if goes_on is None else goes_on & others
        if len(self.stopping.others):
            kept = tuple(self.scores) if self.keeps_scores else None
            others = ~self.stopping.others(ids, kept)
            goes_on = others if goes_on is None else goes_on & others
        self.unfinished = goes_on

    def is_finished(self) -> bool:
        """Whether every sequence has ended."""
        return self.unfinished is not None and not bool(self.unfinished.any())


_KNOWN_KWARGS = {"encoder_outputs", "past_key_values", "use_cache", "attention_mask"}


def _refuse_unknown(
    model: "WhisperFlashAttentionForConditionalGeneration", config: GenerationConfig, kwargs: dict[str, Any]
) -> None:
    """Raise `NotHandledError` for whatever the loop was not written for; Transformers then does what it always did."""
    reasons = {
        "dropout is on": model.training,
        "an attention implementation was asked for": model.config._attn_implementation
        not in {None, "sdpa", ATTENTION_NAME},
        "attentions or hidden states are wanted": config.output_attentions or config.output_hidden_states,
        "another cache was asked for": config.cache_implementation is not None or config.use_cache is False,
        "the model assists another": config.is_assistant,
        "the prompt comes in chunks": config.prefill_chunk_size is not None,
        "autocast is on": torch.is_autocast_enabled(model.device.type),
    }
    for reason, holds in reasons.items():
        if holds:
            raise NotHandledError(reason)
    unknown = {key for key, value in kwargs.items() if key not in _KNOWN_KWARGS and value is not None}
    if unknown:
        raise NotHandledError(f"unknown arguments {sorted(unknown)}")
    cache = kwargs.get("past_key_values")
    if cache is not None and not (type(cache) is EncoderDecoderCache and cache.get_seq_length() == 0):
        raise NotHandledError("the cache is not empty")


def _encode(
    model: "WhisperFlashAttentionForConditionalGeneration",
    weights: DecoderWeights,
    outputs: BaseModelOutput,
    features: Tensor | None,
    shape: CacheShape,
    stores_cross: bool,
    session: "GreedySession | None",
) -> tuple[Tensor | None, Tensor | None]:
    """Bring a batch to where decoding attends to it.

    Returns:
        The cross-attention's keys and values, or the encoder states `(batch, frames, d)`, the other being None; in
        the memory of `session`, where there is one.
    """
    cross_buffer = None if session is None else session.cache.cross_buffer
    held = None if session is None else session.states
    kept = []
    for row, part in _encoded_parts(model, outputs, features, shape):
        if held is not None:
            held[row : row + len(part)] = part
            continue
        if not stores_cross:
            kept.append(part)
            continue
        if cross_buffer is None:  # made only now: the activations of the first audio are gone
            cross_buffer = empty_cross_buffer(shape, part.dtype, part.device)
        project_cross(weights, cross_buffer, part, row)
    if stores_cross:
        return cross_buffer, None
    if held is not None:
        return None, held
    return None, kept[0] if len(kept) == 1 else torch.cat(kept)


def _encoded_parts(
    model: "WhisperFlashAttentionForConditionalGeneration",
    outputs: BaseModelOutput,
    features: Tensor | None,
    shape: CacheShape,
) -> Iterator[tuple[int, Tensor]]:
    """Go through the encoder states of a batch, a few audios at a time, encoding what is not at hand.

    Args:
        model: The model.
        outputs: Encoder outputs, or the stand-in for what is computed here.
        features: `(batch, mel_bins, frames)`, for the latter.
        shape: Of the cache.

    Yields:
        The row of the first audio, and the states `(audios, frames, d)`.
    """
    call = call_of(model)
    states: Tensor | None = outputs[0]
    if isinstance(outputs, DeferredEncoderOutputs):
        assert features is not None
        assert call is not None
        states = call.states_of(features)
    if states is not None and states.shape[:2] != (shape.batch, shape.frames):
        raise NotHandledError("encoder states of another shape")
    rows = ENCODER_ROWS.get(model.device.type, 1)
    encoded = []
    for row in range(0, shape.batch, rows):
        if states is not None:
            yield row, states[row : row + rows]
            continue
        part = model.model.encoder(features[row : row + rows])[0]  # type: ignore[index]
        if call is not None and call.keeps_states:
            encoded.append(part)
        yield row, part
    if call is not None and isinstance(outputs, DeferredEncoderOutputs):
        call.features, call.states = None, None
        if call.keeps_states:
            call.features, call.states = features, states if states is not None else torch.cat(encoded)
