"""One pass through the decoder over buffers: the step that decoding repeats.

It is written for the strictest caller, a captured CUDA graph: positions are a tensor, nothing is read back to the
host, and no shape depends on how far decoding has got (`span` is the caller's choice). Run eagerly, `span` is exact
and no mask is needed; a captured step takes a rounded-up span and a mask. It is one function, so the CPU tests cover
what a GPU replays.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .kv_cache import CrossBuffer, WhisperKVCache
from .weights import DecoderWeights, HeadProjections, LayerWeights, Norm, Projection


def project_cross(weights: DecoderWeights, cross_buffer: CrossBuffer, states: Tensor, first: int) -> None:
    """Project encoder states to the cross-attention's keys and values of every layer.

    Args:
        weights: The decoder.
        cross_buffer: Takes them.
        states: `(audios, frames, d)`, the encoder's output for some of the audios.
        first: The row of the first of them.
    """
    rows = slice(first, first + states.shape[0])
    in_place = kernels.prefers_product_in_place(states)
    for layer, keys_t, values in zip(weights.layers, *cross_buffer, strict=True):
        # One after the other, so that only one is there twice.
        if in_place:
            for audio, target in zip(states, keys_t[rows], strict=True):
                torch.mm(layer.cross_k.weight, audio.t(), out=target.view(-1, audio.shape[0]))
        else:
            _put(keys_t[rows].permute(0, 3, 1, 2), states, layer.cross_k)
        if in_place and states.is_cuda:
            for audio, target in zip(states, values[rows], strict=True):
                project_by_head(target, audio, layer.cross_heads)
        else:
            _put(values[rows].transpose(1, 2), states, layer.cross_v)


def project_by_head(target: Tensor, states: Tensor, heads: HeadProjections) -> None:
    """Project the states of one audio, `(frames, d)`, to its values, `(heads, frames, head_dim)`, where they are kept.

    As many kernels as a projection and a copy into that order, and no memory beside it.
    """
    states = states.expand(len(target), -1, -1)
    if heads.values_bias is None:
        torch.bmm(states, heads.values_t, out=target)
    else:
        torch.baddbmm(heads.values_bias, states, heads.values_t, out=target)


def _put(target: Tensor, states: Tensor, projection: Projection) -> None:
    frames = target.shape[1]
    # In half precision without hardware a part at a time: beside it there are numbers in float32.
    step = kernels.QUERY_CHUNK if kernels.upcasts(states) else frames
    for start in range(0, frames, step):
        part = target[:, start : start + step]
        part.copy_(kernels.linear(states[:, start : start + step], *projection).view(part.shape))


def run_decoder(
    weights: DecoderWeights,
    cache: WhisperKVCache,
    tokens: Tensor,
    positions: Tensor,
    span: int,
    mask: Tensor | None,
    states: Tensor | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """Run new tokens through the decoder, write their keys and values, and return the last one's logits.

    Args:
        weights: The decoder.
        cache: Its cache; positions before the new ones are written.
        tokens: `(batch · new,)`, the new token ids, sequence by sequence.
        positions: `(new,)`, where they stand in the cache, the same for every sequence.
        span: How many cached positions are attended to, counted from the first; at least the last position plus one.
        mask: Added to the self-attention's scores, broadcastable to `(batch, heads, new, span)`; None where every
            query may see all of `span`.
        states: The encoder states, where the cache stores no cross keys and values.
        places: `(batch · new,)`, which position embeddings they get, where padding makes that differ.

    Returns:
        `(batch, vocabulary)`, in the model's dtype.
    """
    batch, new, audios = tokens.shape[0] // positions.shape[0], positions.shape[0], cache.shape.audios
    placed = F.embedding(positions if places is None else places, weights.position_embedding)
    hidden = F.embedding(tokens, weights.token_embedding)
    hidden = hidden + (placed if new == 1 or places is not None else placed.repeat(batch, 1))
    keys = cache.self_keys[..., :span, :].unbind()
    values = cache.self_values[..., :span, :].unbind()
    linear = kernels.linear_for(hidden)
    for index, layer in enumerate(weights.layers):
        query = _write_qkv(layer, cache.self_layers[index], hidden, positions, weights.heads, linear)
        context = kernels.attend(query, keys[index], values[index], query.shape[-1] ** -0.5, mask)
        if new > 1:
            context = context.transpose(1, 2)
        hidden = linear(context.reshape(hidden.shape), *layer.self_out, residual=hidden)
        query = linear(_norm(hidden, layer.cross_norm), *layer.cross_q).view(-1, weights.heads, query.shape[-1])
        if states is None:
            context = _attend_to_stored(cache, index, query, audios)
        else:
            context = _attend_to_states(layer, query, states)
        hidden = linear(context, *layer.cross_out, residual=hidden)
        expanded = linear(_norm(hidden, layer.mlp_norm), *layer.fc1, gelu=True)
        hidden = linear(expanded, *layer.fc2, residual=hidden)
    if new > 1:
        hidden = hidden.view(batch, new, -1)[:, -1]
    return linear(_norm(hidden, weights.norm), *weights.vocabulary)


def causal_mask(queries: int, span: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """The mask `(queries, span)` to add where `queries` new tokens end at `span`; None for one, which sees all."""
    if queries == 1:
        return None
    blocked = torch.full((queries, span), torch.finfo(dtype).min, dtype=dtype, device=device)
    return blocked.triu(span - queries + 1)


def _norm(hidden: Tensor, norm: Norm) -> Tensor:
    return torch.layer_norm(hidden, norm.shape, norm.weight, norm.bias, norm.epsilon)


def _write_qkv(
    layer: LayerWeights,
    buffers: tuple[Tensor, Tensor],
    hidden: Tensor,
    positions: Tensor,
    heads: int,
    linear: Callable[..., Tensor],
) -> Tensor:
    """Project `(batch · new, d)`, write keys and values, return the queries `(batch, heads, new, head_dim)`."""
    normed, new, head_dim = _norm(hidden, layer.self_norm), positions.shape[0], hidden.shape[1] // heads
    shape = (-1, heads, 1, head_dim) if new == 1 else (-1, new, heads, head_dim)
    parts = [linear(normed, *part).view(shape) for part in layer.qkv]
    query, *written = parts if new == 1 else (part.transpose(1, 2) for part in parts)
    for buffer, part in zip(buffers, written, strict=True):
        buffer.index_copy_(2, positions, part)
    return query


def _attend_to_stored(cache: WhisperKVCache, index: int, query: Tensor, audios: int) -> Tensor:
    """Cross-attention over the stored keys and values of a layer.

    All queries of one audio, those of its beams too, go through one product.

    Args:
        cache: Holds them.
        index: The layer.
        query: `(audios · n, heads, head_dim)`, the n queries of an audio together.
        audios: How many there are.

    Returns:
        `(audios · n, d)`.
    """
    rows, heads, head_dim = query.shape
    keys_t, values, scale = cache.cross_keys_t[index], cache.cross_values[index], head_dim**-0.5
    by_head = query.view(audios, -1, heads, head_dim).transpose(1, 2).reshape(audios * heads, -1, head_dim)
    context = kernels.attend_by_products(by_head, keys_t, values, scale, None)
    return context.view(audios, heads, -1, head_dim).transpose(1, 2).reshape(rows, -1)


def _attend_to_states(layer: LayerWeights, query: Tensor, states: Tensor) -> Tensor:
    """Cross-attention over the encoder states themselves.

    Whisper's key projection has no bias and the weights of a softmax sum to one, so with E the states of one audio

        softmax(q (E Wk')') (E Wv' + bv) = (softmax((q Wk) E') E) Wv' + bv

    with Wk and Wv the rows of a head: the states are read twice, and nothing of their size is stored per layer.

    Args:
        layer: The layer.
        query: `(audios · n, heads, head_dim)`, the n queries of an audio together.
        states: The encoder states.

    Returns:
        `(audios · n, d)`.
    """
    rows, heads, head_dim = query.shape
    audios, width, weights = len(states), heads * head_dim, layer.cross_heads
    # With beta = 0 the addend is not read: any view that broadcasts will do.
    folded = torch.baddbmm(weights.keys[:, :1], query.transpose(0, 1), weights.keys, beta=0, alpha=head_dim**-0.5)
    if audios > 1:
        folded = folded.view(heads, audios, -1, width).transpose(0, 1)
    folded = folded.reshape(audios, -1, width)
    mixed = kernels.attend_by_products(folded, states.transpose(1, 2), states, 1.0, None)
    if audios > 1:
        mixed = mixed.view(audios, heads, -1, width).transpose(0, 1)
    mixed = mixed.reshape(heads, rows, width)
    if weights.values_bias is None:
        context = torch.bmm(mixed, weights.values_t)
    else:
        context = torch.baddbmm(weights.values_bias, mixed, weights.values_t)
    return context.transpose(0, 1).reshape(rows, -1)
