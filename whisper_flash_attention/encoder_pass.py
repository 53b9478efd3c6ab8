"""The encoder over buffers: what its modules compute, in memory that is lent for it.

The buffers of captured decoding outlive a call, so they are there while the encoder runs, whose activations would set
the peak beside them. But what the cross-attention's keys and values will fill is free until they are projected: the
hidden states, queries, keys, values and the feed-forward part live there. Beside them there is one tensor at a time of
the size of the encoder states, where the modules need 12 times as much (`tests/model/fake_cuda_cases.py` has the sums).

The residual stream is updated in place and contiguous. (The modules' has the strides of the convolutions' output, for
which each layer norm makes a copy of it.) A layer in float16 is 13 kernels, where the modules launch 15.
"""

import math

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from .encoder_layers import Conv1d, WhisperEncoderLayer
from .flash_attention import ATTENTION_NAME, attention_forward
from .plain import is_exact_gelu, is_plain, is_plain_call
from .weights import Projection, are_alike, is_plain_attention

CONVOLVED_POSITIONS = 375
"""Positions that the convolutions compute at a time: of a window a quarter, so that their results, three times as large
as the encoder states, are smaller than these."""


def serves(encoder: WhisperEncoder, features: Tensor, memory: Tensor) -> bool:
    """Whether `run_encoder` computes what calling the encoder would: stock layers, and nothing but their weights.

    Args:
        encoder: Of a model that `decoding.can_decode` takes: in evaluation mode, without hooks.
        features: Its input.
        memory: To be lent.
    """
    if type(encoder) is not WhisperEncoder or torch.is_grad_enabled() or not is_plain_call(features):
        return False
    config, places, positions = encoder.config, encoder.embed_positions, encoder.config.max_source_positions
    if config._attn_implementation not in {None, "sdpa", ATTENTION_NAME}:
        return False
    if features.dim() != 3 or features.shape[2] != 2 * positions or places.num_embeddings != positions:
        return False
    if not (_convolves(encoder.conv1, 1) and _convolves(encoder.conv2, 2)):
        return False
    modules = [encoder.layer_norm]
    for layer in encoder.layers:
        attention = layer.self_attn
        if type(layer) is not WhisperEncoderLayer or not is_exact_gelu(layer.activation_fn):
            return False
        if not is_plain_attention(attention, None, config.encoder_attention_heads):
            return False
        modules += [layer.self_attn_layer_norm, attention.q_proj, attention.k_proj, attention.v_proj]
        modules += [attention.out_proj, layer.final_layer_norm, layer.fc1, layer.fc2]
    weight = encoder.layer_norm.weight
    return (
        is_plain(places, *modules)
        and are_alike([places, *modules])
        and (weight.dtype, weight.device) == (memory.dtype, memory.device)
    )


def _convolves(convolution: nn.Module, stride: int) -> bool:
    """Whether a convolution is as wide as Whisper's, so that a position sees no further than the next ones."""
    if type(convolution) is not Conv1d or convolution.padding_mode != "zeros":
        return False
    shape = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation)
    return shape == ((3,), (stride,), (1,), (1,))


def run_encoder(encoder: WhisperEncoder, features: Tensor, memory: Tensor) -> Tensor:
    """Encode audio, as the encoder's modules do where `serves` holds.

    Args:
        encoder: The encoder.
        features: `(audios, mel_bins, frames)`.
        memory: `(n,)`, free to be written to, of the weights' dtype; what does not fit is allocated.

    Returns:
        The encoder states `(audios, frames / 2, d)`, a new tensor.
    """
    shape = len(features), encoder.config.max_source_positions, encoder.config.d_model
    rows, width = shape[0] * shape[1], shape[2]
    hidden, free = _carve(memory, rows, width)
    _embed(encoder, features, hidden.view(shape))
    qkv, rest = [], free
    for _ in range(3):
        part, rest = _carve(rest, rows, width)
        qkv.append(part)
    expanded, _ = _carve(free, rows, encoder.config.encoder_ffn_dim)  # when queries, keys and values are done with
    limit = torch.finfo(hidden.dtype).max - 1000
    for layer in encoder.layers:
        attention = layer.self_attn
        normed = _norm(hidden, layer.self_attn_layer_norm)
        for out, projection in zip(qkv, (attention.q_proj, attention.k_proj, attention.v_proj), strict=True):
            _project(out, normed, *Projection.of(projection))
        del normed  # not beside what the attention returns
        query, key, value = (part.view(*shape[:2], attention.num_heads, -1).transpose(1, 2) for part in qkv)
        context, _ = attention_forward(attention, query, key, value, None, scaling=attention.scaling)
        _add_projected(hidden, context.reshape(rows, width), *Projection.of(attention.out_proj))
        del context
        _project(expanded, _norm(hidden, layer.final_layer_norm), *Projection.of(layer.fc1))
        torch.ops.aten.gelu_(expanded)
        _add_projected(hidden, expanded, *Projection.of(layer.fc2))
        if hidden.dtype == torch.float16:
            hidden.clamp_(-limit, limit)
    return _norm(hidden, encoder.layer_norm).view(shape)


def _carve(memory: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    """Take a tensor of `shape` from the front of `memory`, a new one where it does not fit; and what is left."""
    size = math.prod(shape)
    if size > len(memory):
        return memory.new_empty(shape), memory
    return memory[:size].view(shape), memory[size:]


def _embed(encoder: WhisperEncoder, features: Tensor, hidden: Tensor) -> None:
    """Convolve audio to `(audios, positions, d)` and add the position embeddings, some positions at a time.

    Each part is convolved with one position more on either side, which lacks its neighbours and is dropped.
    """
    end = hidden.shape[1]
    for start in range(0, end, CONVOLVED_POSITIONS):
        stop = min(start + CONVOLVED_POSITIONS, end)
        first, last = max(start - 1, 0), min(stop + 1, end)
        part = features[..., 2 * first : 2 * last]
        for convolution in (encoder.conv1, encoder.conv2):
            part = torch.ops.aten.gelu_(convolution(part))
        part = part[..., start - first : stop - first].transpose(1, 2)
        torch.add(part, encoder.embed_positions.weight[start:stop], out=hidden[:, start:stop])


def _norm(hidden: Tensor, norm: nn.LayerNorm) -> Tensor:
    return torch.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _project(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Write the projection of `x`, `(rows, in)`, to `out`, `(rows, out)`."""
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


def _add_projected(hidden: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Add the projection of `x`, `(rows, in)`, to `hidden`, `(rows, out)`."""
    if bias is not None:
        hidden.add_(bias)
    hidden.addmm_(x, weight.t())
