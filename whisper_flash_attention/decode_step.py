"""One pass through the decoder over buffers: the step that decoding repeats.

It is written for the strictest caller, a captured CUDA graph: positions are a tensor, nothing is read back to the
host, and no shape depends on how far decoding has got (`span` is the caller's choice). Run eagerly, `span` is exact
and no mask is needed; a captured step takes a rounded-up span and a mask. It is one function, so the CPU tests cover
what a GPU replays.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels, weighted_rows
from .kv_cache import WhisperKVCache
from .layout import DecoderWeights, LayerWeights


def project_cross(weights: DecoderWeights, cross_buffer: Tensor, states: Tensor, first: int) -> None:
    """Project encoder states to the cross-attention's keys and values of every layer.

    Args:
        weights: The decoder.
        cross_buffer: `(layers, 2, all audios, heads, frames, head_dim)`, takes them.
        states: `(audios, frames, d)`, the encoder's output for some of the audios.
        first: The row of the first of them.
    """
    audios, frames, _ = states.shape
    for layer, buffer in zip(weights.layers, cross_buffer[:, :, first : first + audios], strict=True):
        for target, projection in zip(buffer, (layer.cross_k, layer.cross_v), strict=True):
            target.copy_(
                kernels.linear(states, projection.weight, projection.bias)
                .view(audios, frames, weights.heads, -1)
                .transpose(1, 2)
            )


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
        states: `(audios, frames, d)`, the encoder states, where the cache stores no cross keys and values.
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
    for index, layer in enumerate(weights.layers):
        query = _write_qkv(layer, cache.self_layers[index], hidden, positions, weights.heads)
        context = kernels.attend(query, keys[index], values[index], query.shape[-1] ** -0.5, mask)
        hidden = _add_projected(hidden, context, layer.self_out)
        hidden = _cross_attention(layer, cache, index, hidden, audios, weights.heads, states)
        expanded = kernels.linear(_norm(hidden, layer.mlp_norm), layer.fc1.weight, layer.fc1.bias, gelu=True)
        hidden = kernels.linear(expanded, layer.fc2.weight, layer.fc2.bias, residual=hidden)
    if new > 1:
        hidden = hidden.view(batch, new, -1)[:, -1]
    return _project(_norm(hidden, weights.norm), weights)


def _project(hidden: Tensor, weights: DecoderWeights) -> Tensor:
    """Project the last hidden states `(batch, d)` to the vocabulary."""
    if hidden.shape[0] == 1 and weights.projection_bags is not None and weighted_rows.serves(hidden):
        return weighted_rows.product(hidden, weights.projection.t(), weights.projection_bags)
    return kernels.linear(hidden, weights.projection)


def causal_mask(queries: int, span: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """The mask `(queries, span)` to add where `queries` new tokens end at `span`; None for one, which sees all."""
    if queries == 1:
        return None
    blocked = torch.full((queries, span), torch.finfo(dtype).min, dtype=dtype, device=device)
    return blocked.triu(span - queries + 1)


def _norm(hidden: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _write_qkv(layer: LayerWeights, buffer: Tensor, hidden: Tensor, positions: Tensor, heads: int) -> Tensor:
    """Project `(batch · new, d)`, write keys and values, return the queries `(batch, heads, new, head_dim)`."""
    qkv = kernels.linear(_norm(hidden, layer.self_norm), layer.qkv_weight, layer.qkv_bias)
    qkv = qkv.view(-1, positions.shape[0], 3, heads, buffer.shape[-1]).permute(2, 0, 3, 1, 4)
    buffer.index_copy_(3, positions, qkv[1:])
    return qkv[0]


def _cross_attention(
    layer: LayerWeights,
    cache: WhisperKVCache,
    index: int,
    hidden: Tensor,
    audios: int,
    heads: int,
    states: Tensor | None,
) -> Tensor:
    """Attend to the encoder and add the result to `hidden`, `(batch · new, d)`.

    All queries of one audio, those of its beams too, go through one product.
    """
    query = kernels.linear(_norm(hidden, layer.cross_norm), layer.cross_q.weight, layer.cross_q.bias)
    new, head_dim = query.shape[0] // audios, query.shape[1] // heads
    scale = head_dim**-0.5
    if new > 1:
        query = query.view(audios, new, heads, head_dim).transpose(1, 2)
    if states is not None:
        context = _attend_to_states(layer, query.reshape(audios, heads, new, head_dim), states, scale)
    else:
        query = query.reshape(audios * heads, new, head_dim)
        keys_t, values = cache.cross_keys_t[index], cache.cross_values[index]
        if new == 1 and weighted_rows.serves(query):
            attention = kernels.attention_weights(query, keys_t, scale, None)
            context = weighted_rows.sum_rows(values.flatten(0, 1), cache.cross_bags, attention.view(-1))
        else:
            context = kernels.attend_by_products(query, keys_t, values, scale, None).view(audios, heads, new, head_dim)
    return _add_projected(hidden, context, layer.cross_out)


def _attend_to_states(layer: LayerWeights, query: Tensor, states: Tensor, scale: float) -> Tensor:
    """Cross-attention over the encoder states themselves, `(batch, heads, new, head_dim)` in and out.

    Whisper's key projection has no bias and the weights of a softmax sum to one, so with E the states of one audio

        softmax(q (E Wk')') (E Wv' + bv) = (softmax((q Wk) E') E) Wv' + bv

    with Wk and Wv the rows of a head: the states are read twice, and nothing of their size is stored per layer.
    """
    batch, heads, new, head_dim = query.shape
    width = states.shape[-1]
    key_weight = layer.cross_k.weight.view(heads, head_dim, width)
    value_weight = layer.cross_v.weight.view(heads, head_dim, width)
    by_head = query.transpose(0, 1).reshape(heads, batch * new, head_dim)
    folded = torch.bmm(by_head, key_weight).view(heads, batch, new, width).transpose(0, 1)
    mixed = kernels.attend_by_products(
        folded.reshape(batch, heads * new, width), states.transpose(1, 2), states, scale, None
    )
    mixed = mixed.view(batch, heads, new, width).transpose(0, 1).reshape(heads, batch * new, width)
    context = torch.bmm(mixed, value_weight.transpose(1, 2))
    if layer.cross_v.bias is not None:
        context = context + layer.cross_v.bias.view(heads, 1, head_dim)
    return context.view(heads, batch, new, head_dim).transpose(0, 1)


def _add_projected(hidden: Tensor, context: Tensor, projection: nn.Linear) -> Tensor:
    """Merge the heads of a context, project it, and add it to `hidden`, `(batch · new, d)`.

    Args:
        hidden: `(batch · new, d)`.
        context: `(batch, heads, new, head_dim)`, or for one token anything that holds the numbers in that order.
        projection: `d` to `d`.
    """
    if context.dim() == 4 and context.shape[2] > 1:
        context = context.transpose(1, 2)
    merged = context.reshape(hidden.shape)
    return kernels.linear(merged, projection.weight, projection.bias, residual=hidden)
