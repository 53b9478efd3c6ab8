"""From audio to what decoding attends to: encoder states, or cross-attention's keys and values, in place."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from . import encoder_pass
from .decode_step import project_cross
from .generate_call import NotHandledError, call_of
from .kv_cache import CacheShape, CrossBuffer
from .weights import DecoderWeights

if TYPE_CHECKING:
    from .captured_decoding import GreedySession
    from .generation import FastGenerationMixin

ENCODER_ROWS = {"cpu": 1, "cuda": 8}
"""Audios encoded at a time, per device type: the encoder's activations would otherwise set the peak of a batch, and
one audio of 1500 frames fills a CPU already."""


class DeferredEncoderOutputs(BaseModelOutput):  # type: ignore[misc]
    """Stands for encoder outputs that the loop will compute: the right shape, no memory, however often repeated."""

    @classmethod
    def of_shape(cls, batch: int, frames: int, width: int, dtype: torch.dtype) -> "DeferredEncoderOutputs":
        """Stand for states `(batch, frames, width)`."""
        return cls(last_hidden_state=torch.empty(batch, frames, width, dtype=dtype, device="meta"))


def encode(
    model: "FastGenerationMixin",
    weights: DecoderWeights,
    outputs: BaseModelOutput,
    features: Tensor | None,
    shape: CacheShape,
    stores_cross: bool,
    session: "GreedySession | None" = None,
) -> tuple[CrossBuffer | None, Tensor | None]:
    """Bring a batch to where decoding attends to it.

    Args:
        model: The model.
        weights: Its decoder.
        outputs: Encoder outputs, a row per sequence, or the stand-in for what is computed here.
        features: `(audios, mel_bins, frames)`, for the latter.
        shape: Of the cache.
        stores_cross: Whether cross-attention's keys and values are stored.
        session: Whose memory takes them.

    Returns:
        The cross-attention's keys and values, or the encoder states, the other being None.
    """
    cross_buffer = None if session is None else session.cache.cross_buffer
    held = None if session is None else session.states
    kept: list[Tensor] = []
    scratch = None if cross_buffer is None else cross_buffer.memory
    for row, part in _encoded_parts(model, outputs, features, shape, scratch):
        if held is not None:
            held[row : row + len(part)] = part
            continue
        if not stores_cross:
            kept.append(part)
            continue
        if cross_buffer is None:  # made only now: the activations of the first audio are gone
            cross_buffer = CrossBuffer.empty(shape, part.dtype, part.device)
        project_cross(weights, cross_buffer, part, row)
    if stores_cross:
        return cross_buffer, None
    if held is not None:
        return None, held
    return None, kept[0] if len(kept) == 1 else torch.cat(kept)


def _encoded_parts(
    model: "FastGenerationMixin",
    outputs: BaseModelOutput,
    features: Tensor | None,
    shape: CacheShape,
    scratch: Tensor | None,
) -> Iterator[tuple[int, Tensor]]:
    """Go through the encoder states of a batch, a few audios at a time, encoding what is not at hand.

    Where all are encoded at once, that is done in `scratch`, `(n,)`, if there is any.

    Yields:
        The row of the first audio, and the states `(audios, frames, d)`.
    """
    call = call_of(model)
    if isinstance(outputs, DeferredEncoderOutputs):
        assert features is not None
        assert call is not None
        states = call.states_of(features)
    else:
        states = outputs[0][:: shape.beams]  # Transformers repeats them for every beam
    if states is not None and states.shape[:2] != (shape.audios, shape.frames):
        raise NotHandledError("encoder states of another shape")
    rows = ENCODER_ROWS.get(model.device.type, 1)
    if shape.audios > rows:  # the first are stored before the last are encoded
        scratch = None
    encoded = []
    for row in range(0, shape.audios, rows):
        if states is not None:
            yield row, states[row : row + rows]
            continue
        part = _states_of(model.model.encoder, features[row : row + rows], scratch)  # type: ignore[index]
        if call is not None and call.keeps_states:
            encoded.append(part)
        yield row, part
    if call is not None and isinstance(outputs, DeferredEncoderOutputs):
        call.features, call.states = None, None
        if call.keeps_states:
            call.features, call.states = features, states if states is not None else torch.cat(encoded)


def _states_of(encoder: nn.Module, features: Tensor, scratch: Tensor | None) -> Tensor:
    if scratch is not None and encoder_pass.serves(encoder, features, scratch):
        return encoder_pass.run_encoder(encoder, features, scratch)
    return encoder(features)[0]  # type: ignore[no-any-return]
