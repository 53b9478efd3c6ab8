"""The decoder's parameters, taken apart for decoding.

Nothing is copied and nothing is moved: decoding reads the parameters where they lie, at every step, so that whatever
changes their numbers is seen, and whoever trains, saves, copies or shares the model finds it as it was made. They are
taken apart anew for each call, which takes as long as finding out whether anything has changed.
"""

from collections.abc import Hashable
from typing import Any, NamedTuple, Self

from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperDecoderLayer

from .flash_attention import WhisperFlashAttention
from .plain import is_exact_gelu, is_plain


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
    """A projection: its weight, `(out, in)`, and its bias, `(out,)`, or None."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """Take a module apart."""
        return cls(linear.weight, linear.bias)


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
        qkv: The projections to queries, keys and values of the self-attention.
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
    qkv: tuple[Projection, ...]
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
    """

    token_embedding: Tensor
    position_embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Norm
    vocabulary: Projection
    heads: int

    @classmethod
    def of(cls, decoder: WhisperDecoder, projection: nn.Linear) -> Self:
        """Take a decoder apart for which `is_plain_decoder` holds, and its projection to the vocabulary."""
        layers = []
        for layer in decoder.layers:
            attention, cross = layer.self_attn, layer.encoder_attn
            layers.append(
                LayerWeights(
                    self_norm=Norm.of(layer.self_attn_layer_norm),
                    qkv=tuple(map(Projection.of, (attention.q_proj, attention.k_proj, attention.v_proj))),
                    self_out=Projection.of(attention.out_proj),
                    cross_norm=Norm.of(layer.encoder_attn_layer_norm),
                    cross_q=Projection.of(cross.q_proj),
                    cross_k=Projection.of(cross.k_proj),
                    cross_v=Projection.of(cross.v_proj),
                    cross_heads=HeadProjections.of(cross.k_proj, cross.v_proj, cross.num_heads),
                    cross_out=Projection.of(cross.out_proj),
                    mlp_norm=Norm.of(layer.final_layer_norm),
                    fc1=Projection.of(layer.fc1),
                    fc2=Projection.of(layer.fc2),
                )
            )
        return cls(
            token_embedding=decoder.embed_tokens.weight,
            position_embedding=decoder.embed_positions.weight,
            layers=tuple(layers),
            norm=Norm.of(decoder.layer_norm),
            vocabulary=Projection.of(projection),
            heads=decoder.config.decoder_attention_heads,
        )

    def places(self) -> Hashable:
        """Where all numbers lie, and what else a captured step holds: two decoders of one place are one to it."""
        return _places(self)


def _places(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape, value.dtype, value.device
    return tuple(map(_places, value)) if isinstance(value, tuple) else value


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
    heads = decoder.config.decoder_attention_heads
    for index, layer in enumerate(decoder.layers):
        if type(layer) is not WhisperDecoderLayer or not is_exact_gelu(layer.activation_fn):
            return False
        if not all(is_plain_attention(each, index, heads) for each in (layer.self_attn, layer.encoder_attn)):
            return False
    modules = decoder_modules(decoder, projection)
    return is_plain(*modules) and are_alike(modules)


def are_alike(modules: list[nn.Module]) -> bool:
    """Whether the parameters of modules, those of their children left out, have one dtype and are on one device."""
    kinds = {
        (parameter.dtype, parameter.device) for module in modules for parameter in module.parameters(recurse=False)
    }
    return len(kinds) == 1


def is_plain_attention(attention: nn.Module, layer: int | None, heads: int) -> bool:
    """Whether an attention is what its place in the model says, by its settings too, which anybody may change.

    Args:
        attention: The attention.
        layer: Of the decoder; None in the encoder.
        heads: As many as it has there.
    """
    return (
        type(attention) is WhisperFlashAttention
        and attention.layer_idx == layer
        and attention.num_heads == heads
        and attention.scaling == attention.head_dim**-0.5
    )
