"""Decoder weights laid out for decoding, in the storage of the parameters themselves.

Decoding multiplies every decoder weight by one vector per sequence, so it is bound by how fast the weights can be
read. Two changes help (figures in `kernels.py`): queries, keys and values in one product, and on a CPU weights stored
transposed. Neither costs memory or can go stale: each parameter keeps its name, shape and identity, and its storage
becomes a slice of a fused buffer or gets transposed strides. An optimiser step or `load_state_dict` writes into the
same numbers that decoding reads; `.to()`, `.half()` or `deepcopy` give a parameter new storage, which is noticed
at the next `generate`, and laid out again. Whoever saves or trains may count on PyTorch's own storage, so a state
dict and `train()` put it back until then.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperDecoderLayer

from . import kernels, weighted_rows
from .flash_attention import WhisperFlashAttention

Storages = tuple[tuple[int, int, tuple[int, ...]], ...]
"""Per parameter: identity of its module, address and strides of its numbers."""


class LayerWeights(NamedTuple):
    """What one decoder layer is made of. Weights are `(out, in)`; d is the model's width, f the feed-forward's.

    Attributes:
        self_norm: Layer norm before the self-attention.
        qkv_weight: `(3 d, d)`.
        qkv_bias: `(3 d,)`, zero for the keys, which have none.
        self_out: Output projection of the self-attention.
        cross_norm: Layer norm before the cross-attention.
        cross_q: Query projection of the cross-attention.
        cross_k: Its key projection, `(d, d)`.
        cross_v: Its value projection.
        cross_out: Its output projection.
        mlp_norm: Layer norm before the feed-forward part.
        fc1: `(f, d)`.
        fc2: `(d, f)`.
    """

    self_norm: nn.LayerNorm
    qkv_weight: Tensor
    qkv_bias: Tensor
    self_out: nn.Linear
    cross_norm: nn.LayerNorm
    cross_q: nn.Linear
    cross_k: nn.Linear
    cross_v: nn.Linear
    cross_out: nn.Linear
    mlp_norm: nn.LayerNorm
    fc1: nn.Linear
    fc2: nn.Linear


class DecoderWeights(NamedTuple):
    """A decoder ready to decode.

    Attributes:
        token_embedding: `(vocabulary, d)`.
        position_embedding: `(max_target_positions, d)`.
        layers: Its layers.
        norm: The last layer norm.
        projection: `(vocabulary, d)`.
        projection_bags: How `weighted_rows` multiplies by it, where its columns are contiguous and it can.
        heads: Attention heads.
        storages: The modules and where their numbers were when this was made, as `storages_of` gives them.
    """

    token_embedding: Tensor
    position_embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: nn.LayerNorm
    projection: Tensor
    projection_bags: weighted_rows.Bags | None
    heads: int
    storages: "Storages"


def decoder_modules(decoder: WhisperDecoder, projection: nn.Module) -> list[nn.Module]:
    """List every leaf module that decoding computes from its parameters."""
    modules: list[nn.Module] = [decoder.embed_tokens, decoder.embed_positions, decoder.layer_norm, projection]
    for layer in decoder.layers:
        for attention in (layer.self_attn, layer.encoder_attn):
            modules += [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj]
        modules += [layer.self_attn_layer_norm, layer.encoder_attn_layer_norm, layer.final_layer_norm]
        modules += [layer.fc1, layer.fc2]
    return modules


def is_plain_decoder(decoder: WhisperDecoder, projection: nn.Module) -> bool:
    """Whether the decoder is stock layers and nothing but its weights, all of one dtype on one device."""
    if type(decoder) is not WhisperDecoder:
        return False
    for layer in decoder.layers:
        attentions = (layer.self_attn, layer.encoder_attn)
        if type(layer) is not WhisperDecoderLayer or not kernels.is_exact_gelu(layer.activation_fn):
            return False
        if any(type(attention) is not WhisperFlashAttention for attention in attentions):
            return False
    modules = decoder_modules(decoder, projection)
    if not kernels.is_plain(*modules):
        return False
    parameters = [parameter for module in modules for parameter in module.parameters(recurse=False)]
    first = parameters[0]
    return all(
        type(parameter) is nn.Parameter
        and type(parameter.data) is Tensor
        and parameter.dtype == first.dtype
        and parameter.device == first.device
        and not (parameter.is_meta or parameter.is_inference())
        for parameter in parameters
    )


def storages_of(decoder: WhisperDecoder, projection: nn.Module) -> Storages:
    """Which modules there are and where their numbers lie: changes when those move, not when the numbers change."""
    return tuple(
        (id(module), parameter.data_ptr(), parameter.stride())
        for module in decoder_modules(decoder, projection)
        for parameter in module.parameters(recurse=False)
    )


@torch.inference_mode(False)
@torch.no_grad()
def lay_out(decoder: WhisperDecoder, projection: nn.Linear) -> DecoderWeights:
    """Give the decoder's parameters the storage that decoding is fastest with, one parameter at a time.

    Args:
        decoder: A decoder for which `is_plain_decoder` holds; its parameters keep their identity and numbers.
        projection: The projection to the vocabulary, whose weight may be the token embedding.

    Returns:
        The decoder's weights. They share memory with the parameters and follow every change of their numbers.
    """
    layers = []
    for layer in decoder.layers:
        qkv_weight, qkv_bias = _fuse_qkv(layer.self_attn)
        for linear in (
            layer.self_attn.out_proj,
            layer.encoder_attn.q_proj,
            layer.encoder_attn.out_proj,
            layer.fc1,
        ):
            if kernels.prefers_columns(linear.weight):
                _store_columns(linear.weight)
        layers.append(
            LayerWeights(
                self_norm=layer.self_attn_layer_norm,
                qkv_weight=qkv_weight,
                qkv_bias=qkv_bias,
                self_out=layer.self_attn.out_proj,
                cross_norm=layer.encoder_attn_layer_norm,
                cross_q=layer.encoder_attn.q_proj,
                cross_k=layer.encoder_attn.k_proj,
                cross_v=layer.encoder_attn.v_proj,
                cross_out=layer.encoder_attn.out_proj,
                mlp_norm=layer.final_layer_norm,
                fc1=layer.fc1,
                fc2=layer.fc2,
            )
        )
    bags = None
    if kernels.prefers_vocabulary_columns(projection.weight):
        _store_columns(projection.weight)
        bags = weighted_rows.across(projection.in_features, projection.out_features)
    return DecoderWeights(
        token_embedding=decoder.embed_tokens.weight,
        position_embedding=decoder.embed_positions.weight,
        layers=tuple(layers),
        norm=decoder.layer_norm,
        projection=projection.weight,
        projection_bags=bags,
        heads=decoder.config.decoder_attention_heads,
        storages=storages_of(decoder, projection),
    )


@torch.inference_mode(False)
@torch.no_grad()
def restore(decoder: WhisperDecoder, projection: nn.Linear) -> None:
    """Give every parameter PyTorch's own storage again: contiguous, shared with none."""
    for module in decoder_modules(decoder, projection):
        for parameter in module.parameters(recurse=False):
            whole = parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()
            if not (parameter.is_contiguous() and whole):
                parameter.data = parameter.clone(memory_format=torch.contiguous_format)


def _store_columns(weight: Tensor) -> None:
    """Store a weight `(out, in)` transposed."""
    if weight.stride() != (1, weight.shape[0]):
        weight.data = weight.t().contiguous().t()


def _fuse_qkv(attention: WhisperFlashAttention) -> tuple[Tensor, Tensor]:
    """Make the three input projections of a self-attention slices of one weight `(3 d, d)` and one bias."""
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    width = attention.embed_dim
    weight = torch.cat([projection.weight for projection in projections])
    if kernels.prefers_columns(weight):
        weight = weight.t().contiguous().t()
    bias = weight.new_zeros(3 * width)
    for index, projection in enumerate(projections):
        rows = slice(index * width, (index + 1) * width)
        projection.weight.data = weight[rows]
        if projection.bias is not None:
            bias[rows] = projection.bias
            projection.bias.data = bias[rows]
    return weight, bias
