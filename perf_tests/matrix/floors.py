"""The least that a component has to do: bytes moved and floating-point operations, by formula. Imports no torch.

With the machine's limits (``machine/limits.py``) they give the floor of a case: no program that does the work in
this way can be faster. It is a roofline (Williams, Waterman and Patterson, "Roofline", 2009): a phase takes at
least the longer of its bytes over the memory's bandwidth and its operations over the matrix throughput; phases that
need each other's result follow each other, and their times add up.

A multiplication and an addition are two operations, and only products count, as in ``measure/flops.py``. Bytes are
those of weights, caches, inputs and results, each moved once: what is made on the way may stay in the processor's
cache. Where the weights themselves, or the encoder states that every layer attends to, fit into that cache, a case may
therefore run below its floor.

Letters: B audios, L layers of the decoder, d its width, f of its feed-forward part, V the vocabulary, s bytes per
number, 1500 encoder positions.
"""

from collections.abc import Iterable
from typing import NamedTuple

from .cases import CHECKPOINTS, ENCODER_POSITIONS, MEL_FRAMES, WINDOW_SECONDS, Cell, Checkpoint
from .components import WORKS
from .vocabulary import vocabulary_of


class Phase(NamedTuple):
    """Bytes moved at least and operations of one phase of a round."""

    bytes: int
    flops: int

    def __mul__(self, times: int) -> "Phase":  # type: ignore[override]  # a phase is no sequence to repeat
        return Phase(self.bytes * times, self.flops * times)


class Floor(NamedTuple):
    """All phases together; ``seconds`` on a machine of given limits."""

    seconds: float
    bytes: int
    flops: int


def floor_of(phases: Iterable[Phase], bytes_per_second: float, flops_per_second: float) -> Floor:
    """The floor of ``phases`` one after the other: Σ max(bytes / bandwidth, operations / throughput)."""
    parts = tuple(phases)
    seconds = sum(max(part.bytes / bytes_per_second, part.flops / flops_per_second) for part in parts)
    return Floor(seconds, sum(part.bytes for part in parts), sum(part.flops for part in parts))


def phases_of(cell: Cell, itemsize: int, *, batch_size: int, stores_cross: bool = True) -> tuple[Phase, ...]:
    """The phases of one round of ``cell``'s work.

    Args:
        cell: Checkpoint, decoder layers and work.
        itemsize: s, bytes per number.
        batch_size: B; the work's, or the number of clips there are.
        stores_cross: Whether the implementation keeps the cross-attention's keys and values, or attends to the
            encoder states themselves: two ways of doing the work, with a floor each.
    """
    dims, work, layers = CHECKPOINTS[cell.checkpoint], WORKS[cell.setting], cell.decoder_layers
    prompt = len(vocabulary_of(dims.vocab_size).prompt)
    encoder = encoder_phase(dims, batch_size, itemsize)
    prefill = prefill_phase(dims, layers, batch_size, prompt, itemsize, stores_cross=stores_cross)
    match work.test:
        case "test_encoder":
            return (encoder,)
        case "test_prefill":
            return (prefill,)
        case "test_decode_step":
            return (step_phase(dims, layers, batch_size, work.cache_length, itemsize, stores_cross=stores_cross),)
        case "test_attention":
            return (attention_phase(dims, work.part, batch_size, itemsize),)
        case "test_training_step":
            return training_phases(dims, layers, batch_size, work.new_tokens, itemsize)
        case "test_load":
            return encoder, prefill
        case "test_long_form":
            # Behind the prompt, each window has a timestamp and the tokens that are forced.
            lengths = range(prompt, prompt + work.new_tokens - 1)
            steps = [step_phase(dims, layers, batch_size, n, itemsize, stores_cross=stores_cross) for n in lengths]
            windows = int(work.seconds / WINDOW_SECONDS)
            return tuple(phase * windows for phase in (encoder, prefill, *steps))
    return ()  # how much a transcription has to do depends on what is said


def encoder_phase(dims: Checkpoint, batch_size: int, itemsize: int) -> Phase:
    """The encoder.

    Operations per audio: the convolutions, 2·3000·3·mel·d and 2·1500·3·d², and per layer 2·1500·(4 d² + 2 d f) for
    its six products and 4·1500²·d for the two of attention. Bytes: s times the weights, 3·mel·d + 3 d² + 1500·d + L
    (4 d² + 2 d f), the features and the result.
    """
    width, layers = dims.d_model, dims.encoder_layers
    per_layer = 4 * width**2 + 2 * width * dims.ffn
    convolutions = 3 * dims.mel_bins * width, 3 * width**2
    flops = 2 * MEL_FRAMES * convolutions[0] + 2 * ENCODER_POSITIONS * convolutions[1]
    flops += layers * (2 * ENCODER_POSITIONS * per_layer + 4 * ENCODER_POSITIONS**2 * width)
    weights = sum(convolutions) + ENCODER_POSITIONS * width + layers * per_layer
    activations = batch_size * (MEL_FRAMES * dims.mel_bins + ENCODER_POSITIONS * width)
    return Phase(itemsize * (weights + activations), batch_size * flops)


def step_phase(
    dims: Checkpoint, layers: int, batch_size: int, cached: int, itemsize: int, *, stores_cross: bool, new: int = 1
) -> Phase:
    """``new`` tokens behind ``cached`` ones, through the decoder to the last one's logits.

    Bytes: s times the weights that a step multiplies, L (6 d² + 2 d f) + V d (query, key, value and output of
    self-attention, query and output of cross-attention, the feed-forward part, the vocabulary), the cached keys and
    values, 2 L B cached d, the new ones, 2 L B new d, what the cross-attention reads, and the logits B V. Stored
    keys and values are 2·1500·d per layer and audio; encoder states 1500·d, and 2 d² of weights more per layer.
    Operations: 2 B new times the weights of the layers and 2 B times those of the vocabulary, and per layer and new
    token 4 B d (cached + new) and 4 B·1500·d for attention, or (4 H·1500·d + 4 d²) over the states with H heads.
    """
    width, vocabulary = dims.d_model, dims.vocab_size
    per_layer = 6 * width**2 + 2 * width * dims.ffn
    cross_read = 2 * ENCODER_POSITIONS * width * batch_size
    cross_flops = 4 * ENCODER_POSITIONS * width
    if not stores_cross:
        cross_read = ENCODER_POSITIONS * width * batch_size + 2 * width**2
        cross_flops = 4 * dims.heads * ENCODER_POSITIONS * width + 4 * width**2
    numbers = layers * (per_layer + cross_read) + vocabulary * width
    numbers += 2 * layers * batch_size * (cached + new) * width + batch_size * vocabulary
    seen = sum(cached + index + 1 for index in range(new))
    flops = layers * (new * (2 * per_layer + cross_flops) + 4 * width * seen) + 2 * vocabulary * width
    return Phase(itemsize * numbers, batch_size * flops)


def prefill_phase(
    dims: Checkpoint, layers: int, batch_size: int, prompt: int, itemsize: int, *, stores_cross: bool
) -> Phase:
    """From encoder states to the logits behind the prompt.

    A step of ``prompt`` tokens without a cache; before it, where keys and values of the cross-attention are stored,
    their projection: 2·1500·2 d² operations per layer and audio, the states and the 2 d² weights read once. (That
    they are written is counted by the step, which reads them: in one phase they may not leave the cache.)
    """
    step = step_phase(dims, layers, batch_size, 0, itemsize, stores_cross=stores_cross, new=prompt)
    if not stores_cross:
        return step
    width = dims.d_model
    states = batch_size * ENCODER_POSITIONS * width
    read = itemsize * (states + layers * 2 * width**2)
    return Phase(step.bytes + read, step.flops + batch_size * layers * 4 * ENCODER_POSITIONS * width**2)


def attention_phase(dims: Checkpoint, part: str, batch_size: int, itemsize: int) -> Phase:
    """One attention module, its four projections included.

    Operations per audio: 2 d² per position and projection (query and output at the queries, key and value at the
    keys) and 4 d for each pair of a query and a key that it may see: Q K, or Q (Q + 1) / 2 where causal. Bytes: 4 d²
    of weights, the states of queries and (across) keys, the result.
    """
    width = dims.d_model
    queries, keys = ATTENTION_LENGTHS[part]
    pairs = queries * (queries + 1) // 2 if part == "decoder_self" else queries * keys
    flops = 4 * width**2 * (queries + keys) + 4 * width * pairs
    positions = 2 * queries + (keys if part == "cross" else 0)
    return Phase(itemsize * (4 * width**2 + batch_size * positions * width), batch_size * flops)


ATTENTION_LENGTHS = {
    "encoder_self": (ENCODER_POSITIONS, ENCODER_POSITIONS),
    "decoder_self": (448, 448),
    "cross": (448, ENCODER_POSITIONS),
}
"""Queries and keys of ``test_attention``: the longest that the model knows, as in training."""


def training_phases(
    dims: Checkpoint, layers: int, batch_size: int, tokens: int, itemsize: int
) -> tuple[Phase, Phase, Phase]:
    """Forward through encoder and decoder, and backward through both.

    The decoder's forward pass takes ``tokens`` labels at once, with the logits of all. A product's backward pass is
    two products of its size (Kaplan et al., "Scaling laws", 2020), one for each operand; the first convolution needs
    but one, since nobody asks for the gradient of the features. Backward reads the weights once more and writes
    their gradients.
    """
    encoder = encoder_phase(dims, batch_size, itemsize)
    width, vocabulary = dims.d_model, dims.vocab_size
    weights = layers * (8 * width**2 + 2 * width * dims.ffn) + vocabulary * width
    flops = layers * tokens * (2 * (6 * width**2 + 2 * width * dims.ffn) + 4 * ENCODER_POSITIONS * width)
    flops += layers * (4 * ENCODER_POSITIONS * width**2 + 2 * width * tokens * (tokens + 1))
    flops += 2 * tokens * vocabulary * width
    states = batch_size * ENCODER_POSITIONS * width
    decoder = Phase(itemsize * (weights + states), batch_size * flops)
    first = 2 * MEL_FRAMES * 3 * dims.mel_bins * width * batch_size
    backward = Phase(
        2 * (encoder.bytes + decoder.bytes),
        2 * (encoder.flops + decoder.flops) - first,
    )
    return encoder, decoder, backward
