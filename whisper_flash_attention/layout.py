"""Decoder weights laid out for decoding, in the storage of the parameters themselves.

Decoding multiplies every decoder weight by one vector per sequence, so it is bound by how fast the weights can be
read. Two changes help (figures in `kernels.py`): queries, keys and values in one product, and on a CPU weights stored
transposed. Neither costs memory or can go stale: each parameter keeps its name, shape and identity, and its storage
becomes a slice of a fused buffer or gets transposed strides. An optimiser step or `load_state_dict` writes into the
same numbers that decoding reads; `.to()`, `.half()` or `deepcopy` give a parameter new storage, which is noticed
at the next `generate`, and laid out again. Whoever saves or trains may count on PyTorch's own storage, so a state
dict and `train()` put it back until then.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperDecoderLayer

from . import kernels
from .flash_attention import WhisperFlashAttention
from .weighted_rows import LAYER_SUMS, VOCABULARY_SUMS, RowProduct, prefers_row_product

Storages = tuple[tuple[int, int, tuple[int, ...]], ...]
"""Per parameter: identity of its module, address and strides of its numbers."""


class Norm(NamedTuple):
    """A layer norm: its weight and bias, `(d,)`, its shape and epsilon."""

    shape: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    epsilon: float

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> Self:
        """Take a module apart."""
        return cls(norm.normalized_shape, norm.weight, norm.bias, norm.eps)


class Projection(NamedTuple):
    """A projection.

    Attributes:
        weight: `(out, in)`, rows or columns contiguous.
        bias: `(out,)`, or None.
        row_product: How `weighted_rows` multiplies one row by both, where it does.
    """

    weight: Tensor
    bias: Tensor | None
    row_product: RowProduct | None = None


class HeadProjections(NamedTuple):
    """The key and value projections of a cross-attention by head, views made once, for queries that meet the states.

    Attributes:
        keys: `(heads, head_dim, d)`.
        values_t: `(heads, d, head_dim)`.
        values_bias: `(heads, 1, head_dim)`, or None.
    """

    keys: Tensor
    values_t: Tensor
    values_bias: Tensor | None

    @classmethod
    def of(cls, keys: nn.Linear, values: nn.Linear, heads: int) -> Self:
        """Take two modules apart."""
        bias = None if values.bias is None else values.bias.view(heads, 1, -1)
        by_head = (linear.weight.view(heads, -1, linear.in_features) for linear in (keys, values))
        return cls(next(by_head), next(by_head).transpose(1, 2), bias)


class LayerWeights(NamedTuple):
    """What one decoder layer is made of; d is the model's width, f the feed-forward's.

    Attributes:
        self_norm: Layer norm before the self-attention.
        qkv: `d` to queries, keys and values, `3 d`; the bias of the keys, which have none, is zero.
        self_out: Output projection of the self-attention.
        cross_norm: Layer norm before the cross-attention.
        cross_q: Query projection of the cross-attention.
        cross_k: Its key projection.
        cross_v: Its value projection.
        cross_heads: Both by head.
        cross_out: Its output projection.
        mlp_norm: Layer norm before the feed-forward part.
        fc1: `d` to `f`.
        fc2: `f` to `d`.
    """

    self_norm: Norm
    qkv: Projection
    self_out: Projection
    cross_norm: Norm
    cross_q: Projection
    cross_k: Projection
    cross_v: Projection
    cross_heads: HeadProjections
    cross_out: Projection
    mlp_norm: Norm
    fc1: Projection
    fc2: Projection


class DecoderWeights(NamedTuple):
    """A decoder ready to decode.

    Attributes:
        token_embedding: `(vocabulary, d)`.
        position_embedding: `(max_target_positions, d)`.
        layers: Its layers.
        norm: The last layer norm.
        vocabulary: `d` to the vocabulary.
        heads: Attention heads.
        storages: The modules and where their numbers were when this was made, as `storages_of` gives them.
    """

    token_embedding: Tensor
    position_embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Norm
    vocabulary: Projection
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
        attention, cross = layer.self_attn, layer.encoder_attn
        layers.append(
            LayerWeights(
                self_norm=Norm.of(layer.self_attn_layer_norm),
                qkv=_lay_out_linears(attention.q_proj, attention.k_proj, attention.v_proj),
                self_out=_lay_out_linears(attention.out_proj),
                cross_norm=Norm.of(layer.encoder_attn_layer_norm),
                cross_q=_lay_out_linears(cross.q_proj),
                # These two multiply frames by the hundreds: their own storage serves as well.
                cross_k=Projection(cross.k_proj.weight, cross.k_proj.bias),
                cross_v=Projection(cross.v_proj.weight, cross.v_proj.bias),
                cross_heads=HeadProjections.of(cross.k_proj, cross.v_proj, cross.num_heads),
                cross_out=_lay_out_linears(cross.out_proj),
                mlp_norm=Norm.of(layer.final_layer_norm),
                fc1=_lay_out_linears(layer.fc1),
                fc2=_lay_out_linears(layer.fc2),
            )
        )
    return DecoderWeights(
        token_embedding=decoder.embed_tokens.weight,
        position_embedding=decoder.embed_positions.weight,
        layers=tuple(layers),
        norm=Norm.of(decoder.layer_norm),
        vocabulary=_lay_out_vocabulary(projection.weight),
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


def _lay_out_vocabulary(weight: Tensor) -> Projection:
    """Store the projection to the vocabulary `(vocabulary, d)` as it multiplies fastest."""
    if not kernels.prefers_vocabulary_columns(weight):
        return Projection(weight, None)
    if weight.stride() != (1, weight.shape[0]):
        weight.data = weight.t().contiguous().t()
    return Projection(weight, None, RowProduct.of(weight.t(), VOCABULARY_SUMS))


def _lay_out_linears(*linears: nn.Linear) -> Projection:
    """Make weights and biases of linear layers with one input slices of one matrix, stored as it multiplies fastest."""
    first = linears[0].weight
    sums, product = prefers_row_product(first), None
    columns = sums or kernels.prefers_columns(first)
    if len(linears) == 1 and not columns:
        return Projection(first, linears[0].bias)
    in_features, out_features = linears[0].in_features, sum(linear.out_features for linear in linears)
    if columns:
        # With the bias as its last row, one sum takes it in.
        matrix = first.new_empty(in_features + 1, out_features)
        weight, bias = matrix[:-1].t(), matrix[-1]
        product = RowProduct.of(matrix, LAYER_SUMS, with_bias=True) if sums else None
    else:
        weight, bias = first.new_empty(out_features, in_features), first.new_empty(out_features)
    start = 0
    for linear in linears:
        rows = slice(start, start + linear.out_features)
        start += linear.out_features
        weight[rows] = linear.weight
        linear.weight.data = weight[rows]
        bias[rows] = 0  # the projection of the keys has none
        if linear.bias is not None:
            bias[rows] = linear.bias
            linear.bias.data = bias[rows]
    return Projection(weight, bias, product)
