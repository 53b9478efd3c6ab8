"""The decoding loops behind `generate`.

`decode` is the callable that goes into Transformers' public hook, `generate(custom_generate=…)`. Transformers has
then prepared prompt, logits processors and stopping criteria, and `decode` returns what its own loops would: greedy
search, sampling and beam search, with scores and logits where asked. What it does not handle it refuses with
`NotHandledError`, before anything has happened, and the caller takes Transformers' loop.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import (
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
    WhisperConfig,
)
from transformers.generation import GenerateEncoderDecoderOutput, GenerationMode

from .beam_search import BeamSearch
from .captured_decoding import hand_over
from .choosing import Stopping, TokenChooser
from .decoder import Decoder, PaddedPrompt
from .encoding import encode
from .flash_attention import ATTENTION_NAME
from .generate_call import NotHandledError, call_of
from .kv_cache import CacheShape, WhisperKVCache
from .logits import ScoreProcessor
from .plain import has_hooks
from .weights import is_plain_decoder

if TYPE_CHECKING:
    from .generation import FastGenerationMixin

FOREIGN = ("custom_generate", "assistant_model", "streamer", "past_key_values")
"""Arguments of `generate` with which a call is Transformers'."""

HANDLED_MODES = {
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,  # of a configuration: the temperature decides anew, and samples without beams
}


def can_decode(model: "FastGenerationMixin", named: dict[str, Any]) -> bool:
    """Whether nothing about a call is lost when Transformers hands it to `decode`.

    Args:
        model: The model.
        named: The arguments of `generate_with_fallback`.
    """
    config, kwargs = named["generation_config"], named["kwargs"]
    if named.get("synced_gpus") or any(kwargs.get(key) is not None for key in FOREIGN):
        return False
    if config.get_generation_mode() not in HANDLED_MODES or config.cache_implementation is not None:
        return False
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return False
    # Hooks must see the calls they would see; dropout, if only in one layer, must drop.
    if model.is_overridden or any(module.training or has_hooks(module) for module in model.modules()):
        return False
    return is_plain_decoder(model.model.decoder, model.proj_out)


def cache_capacity(config: WhisperConfig, named: dict[str, Any]) -> int | None:
    """Decoder positions that a cache needs which Transformers' loops write in place; None where they make their own.

    Args:
        config: The model's.
        named: The arguments of `generate_with_fallback`.
    """
    asked, kwargs = named["generation_config"], named["kwargs"]
    special = (
        any(kwargs.get(key) is not None for key in ("custom_generate", "assistant_model", "past_key_values"))
        or asked.get_generation_mode() not in HANDLED_MODES
        or asked.cache_implementation is not None
        or asked.use_cache is False
        or asked.prefill_chunk_size is not None
        or asked.is_assistant
    )
    if special:
        return None
    new_tokens, limit = asked.max_new_tokens, config.max_target_positions
    longest = asked.max_length if new_tokens is None else named["decoder_input_ids"].shape[1] + new_tokens
    return int(min(longest or limit, limit))


def decode(
    model: "FastGenerationMixin",
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    inputs_tensor: Tensor | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateEncoderDecoderOutput:
    """Decode greedily, by sampling or with beams, as `generate` was asked to.

    Args:
        model: The model.
        input_ids: `(batch, prompt)`, the decoder's prompt, once per beam.
        logits_processor: Applied to the scores of each step, in order.
        stopping_criteria: Any of them ends a sequence.
        generation_config: The prepared configuration.
        inputs_tensor: `(audios, mel_bins, frames)`, encoded here where the encoder outputs are deferred.
        model_kwargs: Encoder outputs and the rest of what Transformers prepared.

    Returns:
        `(batch, length)` token ids, or the output object where `return_dict_in_generate` is set.

    Raises:
        NotHandledError: Transformers' loop must take this call.
    """
    _refuse_unknown(model, generation_config, model_kwargs)
    device, (batch, prompt) = input_ids.device, input_ids.shape
    padded = _padded_prompt(model, model_kwargs.get("decoder_attention_mask"), input_ids)
    config = model.config
    stopping = Stopping.from_criteria(stopping_criteria, config.max_target_positions, device)
    if not prompt < stopping.max_length <= config.max_target_positions:
        raise NotHandledError("max_length")
    weights = model.decoder_weights()
    shape = CacheShape(
        layers=len(weights.layers),
        batch=batch,
        heads=weights.heads,
        head_dim=config.d_model // weights.heads,
        capacity=stopping.max_length - 1,
        frames=config.max_source_positions,
        beams=generation_config.num_beams or 1,
    )
    as_dict = bool(generation_config.return_dict_in_generate)
    stores_cross = as_dict or model.stores_cross_attention(shape.audios)
    audio = (model, weights, model_kwargs["encoder_outputs"], inputs_tensor, shape, stores_cross)
    if shape.beams > 1:
        search = BeamSearch(generation_config, ScoreProcessor.for_model(logits_processor, weights), stopping)
        cross_buffer, states = encode(*audio)
        cache = WhisperKVCache(shape, weights.vocabulary.weight.dtype, device, cross_buffer)
        decoder = Decoder(weights, cache, states, padded)
        output = search.run(decoder, input_ids)
        model.note_decoding(cache, captured=False, compiled=decoder.compiled is not None)
        return output

    chooser = TokenChooser.from_config(generation_config, logits_processor, stopping, weights)
    captures = chooser.is_capturable(prompt) and not as_dict
    kind = {"stores_cross": stores_cross, "hides": padded is not None}
    call = call_of(model)
    with model.greedy_session(weights, shape, chooser, **kind, captures=captures) as session:
        hand_over(call.states if call else None)
        cross_buffer, states = encode(*audio, session)
        if session is not None:
            cache, ids = session.cache, session.ids
        else:
            cache = WhisperKVCache(shape, weights.vocabulary.weight.dtype, device, cross_buffer)
            ids = torch.empty(batch, stopping.max_length, dtype=torch.long, device=device)

        ids[:, :prompt] = input_ids
        decoder = Decoder(weights, cache, states, padded)
        tokens = chooser.choose(ids, prompt, decoder.read_prompt(input_ids))
        length = prompt + 1
        if session is not None:
            rules = chooser.processor.timestamps
            stamps = None if rules is None else rules.state_of(ids[:, rules.begin : length])
            session.start(tokens, length, stamps, decoder.padding)
            length = session.run(length, stopping.max_length, chooser.processor.suppression)
        else:
            while length < stopping.max_length and not chooser.is_finished():
                tokens = chooser.choose(ids, length, decoder.step(tokens, length))
                length += 1
        sequences = ids[:, :length].clone()

    hand_over(sequences, call.states if call else None)
    captured = session is not None and session.captures
    compiled = session is None and decoder.compiled is not None
    model.note_decoding(cache, captured=captured, compiled=compiled)
    if not as_dict:
        return sequences
    cache.set_lengths(length - 1)
    return GenerateEncoderDecoderOutput(
        sequences=sequences,
        scores=tuple(chooser.scores) if generation_config.output_scores else None,
        logits=tuple(chooser.logits) if generation_config.output_logits else None,
        past_key_values=cache,
    )


_KNOWN_KWARGS = {"encoder_outputs", "past_key_values", "use_cache", "attention_mask", "decoder_attention_mask"}


def _refuse_unknown(model: "FastGenerationMixin", config: GenerationConfig, kwargs: dict[str, Any]) -> None:
    """Raise `NotHandledError` for whatever the loops were not written for; Transformers then does as ever."""
    reasons = {
        "dropout is on": model.training,
        "an attention implementation was asked for": model.config._attn_implementation
        not in {None, "sdpa", ATTENTION_NAME},
        "attentions or hidden states are wanted": config.output_attentions or config.output_hidden_states,
        "another cache was asked for": config.cache_implementation is not None or config.use_cache is False,
        "the model assists another": config.is_assistant,
        "the prompt comes in chunks": config.prefill_chunk_size is not None,
        "autocast is on": torch.is_autocast_enabled(model.device.type),
        "beams are sampled, or one by one": config.num_beams > 1 and (config.do_sample or config.low_memory),
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


def _padded_prompt(model: "FastGenerationMixin", mask: Tensor | None, input_ids: Tensor) -> PaddedPrompt | None:
    """What is padded of the prompts `input_ids`, `(batch, prompt)`; None where nothing is.

    Raises:
        NotHandledError: The mask is of another shape, or hides the token that is to be continued.
    """
    if mask is None:
        return None
    if mask.shape != input_ids.shape:
        raise NotHandledError("the prompt's mask has another shape")
    mask = mask.to(input_ids.device).bool()
    if bool(mask.all()):
        return None
    if not bool(mask[:, -1].all()):
        raise NotHandledError("the prompt ends in padding")
    # Which positions padded tokens have is Transformers' to say: some versions count the padding, some do not.
    prepared = model.prepare_inputs_for_generation(input_ids, decoder_attention_mask=mask)
    places = prepared.get("decoder_position_ids")
    if places is None:
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    return PaddedPrompt(mask, places)
