"""Which kernel serves which call, and the calls themselves.

Every choice is a row of a table with the measurement that made it, so that a reader can check it and a new
machine can get a row of its own. The choice depends on device, dtype and shape alone, never on a timing taken at
run time: operator counts stay exact and two runs on one machine do the same work.

Figures are from a 2-core AMD EPYC (Zen 4, AVX-512 with bfloat16), torch 2.13, milliseconds per call unless said
otherwise. Weights are `(out, in)` as in `torch.nn.Linear`; M is the number of rows multiplied.

| call | M | `F.linear` | oneDNN |
|---|---|---|---|
| (51864, 384) float32, the vocabulary projection | 1 | 8.8 | 3.2 |
| | 4 | 13.0 | 6.1 |
| | 16 | 15.3 | 8.5 |
| (1152, 384) float32 | 1 | 0.187 | 0.119 |
| | 16 | 0.243 | 0.179 |
| (384, 1536) float32, `fc2` | 1 | 0.151 | 0.094 |
| | 16 | 0.245 | 0.184 |
| (512, 2048) float32, `fc2` | 1 | 0.235 | 0.146 |
| (1536, 384) float32, `fc1` and GELU in the encoder | 1500 | 10.12 | 8.85 |
| (51864, 384) bfloat16 | 1 | 2.57 | 2.51 |
| (384, 1536) bfloat16, `fc2` | 1 | 0.086 | 0.085 |

| encoder self-attention, 6 heads of 64, 1500 frames | SDPA | matmul per head, 500 queries at a time |
|---|---|---|
| float32 | 21.4 | 26.8 |
| bfloat16 | 22.8 | 14.8 |

| cross-attention of one query, 1500 frames, per layer | SDPA | batched matmul |
|---|---|---|
| float32, d 384, batch 1 / 16 | 0.09 / 3.2 | 0.07 / 2.9 |
| bfloat16, d 384, batch 1 / 4 | 0.50 / 6.3 | 0.09 / 0.29 |
| bfloat16, d 768, batch 16 / 32 | 19.5 / 34.5 | 3.3 / 6.4 |
"""

import functools
import platform
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .plain import is_plain_call, is_plain_inference

UPCAST_ROWS = 32
"""Rows from which a product in half precision without hardware is worth upcasting the weight."""

UPCAST_NUMBERS = 192 * 1024
"""Results or operands of such a product at a time, so that what is in float32 stays small beside the activations."""

QUERY_CHUNK = 500
"""Queries per chunk of the bfloat16 encoder attention on a CPU: 128 to 1500 were tried, 500 to 1500 tie, and the
scores of 500 take 1.5 MB per head."""


@functools.cache
def _onednn_dtypes() -> frozenset[torch.dtype]:
    """The dtypes whose products oneDNN serves faster than `F.linear` on this machine's CPU (the table above)."""
    if platform.machine() not in {"x86_64", "AMD64"} or not torch.backends.mkldnn.is_available():
        return frozenset()
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return frozenset()
    return frozenset({torch.float32} | (_native_half_dtypes() & {torch.bfloat16}))


def onednn_serves(x: Tensor) -> bool:
    """Whether `linear` hands a product with `x` to oneDNN."""
    return is_plain_inference(x) and x.dtype in _onednn_dtypes() and bool(torch.backends.mkldnn.enabled)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Compute `x @ weight.T + bias`, then the exact GELU, or plus `residual`; not both.

    Args:
        x: `(…, in)`.
        weight: `(out, in)`, contiguous.
        bias: `(out,)`.
        gelu: Apply the GELU with the error function (Hendrycks and Gimpel, 2016), not its tanh approximation.
        residual: `(…, out)`, added to the product.

    Returns:
        `(…, out)`, always a new tensor.
    """
    return linear_for(x)(x, weight, bias, gelu=gelu, residual=residual)


def linear_for(x: Tensor) -> Callable[..., Tensor]:
    """`linear` for all inputs like `x`, so that what decides the library is asked once."""
    if onednn_serves(x):
        return onednn_linear
    return upcast_linear if upcasts(x) and x.numel() >= UPCAST_ROWS * x.shape[-1] else torch_linear


def onednn_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False, residual: Tensor | None = None
) -> Tensor:
    """`linear` by oneDNN, where it serves."""
    if not are_of_one_dtype(x, weight, bias, residual):
        return torch_linear(x, weight, bias, gelu=gelu, residual=residual)
    product = torch.ops.mkldnn._linear_pointwise
    if residual is not None:
        return product.binary(x, residual, weight, bias, "add")  # type: ignore[no-any-return]
    rides = gelu and _gelu_rides()
    y = product(x, weight, bias, "gelu" if rides else "none", [], "none")
    return torch.ops.aten.gelu_(y) if gelu and not rides else y  # type: ignore[no-any-return]


@functools.cache
def _gelu_rides() -> bool:
    """Whether oneDNN applies the GELU to a product, rather than PyTorch afterwards, in place.

    `fc1`, GELU and `fc2` of 1500 rows in float32 on an Ice Lake Xeon, milliseconds by oneDNN's / by PyTorch's:

    | | d 384 | d 512 |
    |---|---|---|
    | AVX-512 | 19.0 / 18.3 | 32.0 / 31.5 |
    | held to AVX2 | 34.7 / 31.4 | 63.2 / 57.4 |
    """
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def are_of_one_dtype(*tensors: Tensor | None) -> bool:
    """Whether tensors, but for those that are None, have one dtype; PyTorch refuses or promotes the others."""
    return len({tensor.dtype for tensor in tensors if tensor is not None}) == 1


def torch_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False, residual: Tensor | None = None
) -> Tensor:
    """`linear` by PyTorch."""
    y = F.linear(x, weight, bias)
    if gelu:
        return F.gelu(y)
    return y if residual is None else residual + y


@functools.cache
def _native_half_dtypes() -> frozenset[torch.dtype]:
    """The dtypes of 16 bits whose products this machine's CPU has instructions for."""
    asked = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if platform.machine() not in {"x86_64", "AMD64"}:  # not measured: left to PyTorch
        return frozenset(asked)
    native = {
        dtype
        for dtype, name in asked.items()
        if not hasattr(torch.ops.mkldnn, name) or getattr(torch.ops.mkldnn, name)()
    }
    # oneDNN says so of every AVX-512. On a Xeon without the instructions the encoder takes 689 ms (tiny.en) and
    # 1728 (base.en) by its emulation, and 324 and 804 upcast.
    return frozenset(native if torch.cpu._is_avx512_bf16_supported() else native - {torch.bfloat16})


def upcasts(x: Tensor) -> bool:
    """Whether products and convolutions of many rows `x` are computed in float32: half precision without hardware.

    The encoder of tiny.en and its parts, milliseconds by PyTorch in each dtype, on a Xeon held to AVX2.
    Upcast, it takes 273 in bfloat16 and 272 in float16, 13 of them in convolutions:

    | | all | convolutions | `fc1` | SDPA |
    |---|---|---|---|---|
    | float32 | 284 | 11 | 9 | 22 |
    | bfloat16 | 1519 | 594 | 65 | 25 |
    | float16 | 1926 | 800 | 76 | 24 |
    """
    return is_plain_inference(x) and x.dtype in {torch.bfloat16, torch.float16} - _native_half_dtypes()


def upcast_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False, residual: Tensor | None = None
) -> Tensor:
    """`linear` in float32, from a weight that is upcast for this product alone, some rows at a time."""
    if not are_of_one_dtype(x, weight, bias, residual):
        return torch_linear(x, weight, bias, gelu=gelu, residual=residual)
    rows, wide_weight = x.reshape(-1, x.shape[-1]), weight.float()
    wide_bias = None if bias is None else bias.float()
    added = None if residual is None else residual.reshape(len(rows), -1)
    y = x.new_empty(*x.shape[:-1], len(weight))
    step = max(UPCAST_NUMBERS // max(weight.shape), 1)
    for start in range(0, len(rows), step):
        chunk = slice(start, start + step)
        wide_added = None if added is None else added[chunk].float()
        y.view(len(rows), -1)[chunk] = linear(
            rows[chunk].float(), wide_weight, wide_bias, gelu=gelu, residual=wide_added
        )
    return y


def prefers_chunked_attention(query: Tensor, key: Tensor) -> bool:
    """Whether unmasked attention goes to `chunked_attention`: bfloat16 on a CPU that multiplies it, but in no tiles.

    With AMX, SDPA takes 6 ms for the call of the table above, and the chunks 14.
    """
    has_length = query.shape[2] >= QUERY_CHUNK and key.shape[2] > 1
    return query.dtype == torch.bfloat16 and has_length and onednn_serves(query) and not _has_tiles()


def upcast_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """A convolution along the last axis in float32, of zero-padded `(…, in, frames)`, some frames at a time.

    Args:
        x: `(…, in, frames)`.
        weight: `(out, in, width)`.
        bias: `(out,)`, or None.
        stride: Frames from one output to the next.
        padding: Zeros on either side.

    Returns:
        `(…, out, (frames + 2 · padding - width) // stride + 1)`.
    """
    (outputs, _, width), frames = weight.shape, x.shape[-1]
    wide_weight, wide_bias = weight.float(), None if bias is None else bias.float()
    y = x.new_empty(*x.shape[:-2], outputs, (frames + 2 * padding - width) // stride + 1)
    step = max(UPCAST_NUMBERS // outputs, 1)
    for start in range(0, y.shape[-1], step):
        chunk = y[..., start : start + step]
        first = start * stride - padding
        end = first + (chunk.shape[-1] - 1) * stride + width
        seen = x[..., max(first, 0) : min(end, frames)].float()
        seen = F.pad(seen, (max(-first, 0), max(end - frames, 0)))
        chunk.copy_(F.conv1d(seen, wide_weight, wide_bias, stride))
    return y


@functools.cache
def _has_tiles() -> bool:
    """Whether this machine's CPU multiplies matrices of bfloat16 as such (AMX)."""
    return bool(torch.cpu._is_amx_tile_supported())


def chunked_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Exact attention without mask by matrix products, a chunk of queries of one head at a time.

    Args:
        query: `(batch, heads, queries, head_dim)`, any strides.
        key: `(batch, heads, keys, head_dim)`.
        value: `(batch, heads, keys, head_dim)`.
        scale: Factor of the scores.

    Returns:
        `(batch, heads, queries, head_dim)`; beyond it, `QUERY_CHUNK · keys` scores are alive at a time.
    """
    batch, heads, queries, _ = query.shape
    out = torch.empty_like(query)
    for b in range(batch):
        for h in range(heads):
            key_t, head_value = (key[b, h] * scale).t(), value[b, h]
            for start in range(0, queries, QUERY_CHUNK):
                chunk = slice(start, start + QUERY_CHUNK)
                # In one expression: a name would keep one chunk's weights beside the next one's scores.
                out[b, h, chunk] = torch.softmax(query[b, h, chunk] @ key_t, dim=-1) @ head_value
    return out


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Exact attention of few queries over few keys, by the faster of PyTorch's fused kernel and matrix products.

    Args:
        query: `(batch, heads, queries, head_dim)`, any strides.
        key: `(batch, heads, keys, head_dim)`, any strides.
        value: `(batch, heads, keys, head_dim)`, any strides.
        scale: Factor of the scores.
        mask: Added to the scores, broadcastable to `(batch, heads, queries, keys)`; None for no mask.

    Returns:
        `(batch, heads, queries, head_dim)`.
    """
    if prefers_fused(query, key):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    if mask is not None and mask.dim() == 4:
        mask = mask.expand(-1, query.shape[1], -1, -1).flatten(0, 1)
    out = attend_by_products(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), value.flatten(0, 1), scale, mask)
    return out.view(query.shape)


def prefers_fused(query: Tensor, key: Tensor) -> bool:
    """Whether few queries over few keys go to PyTorch's fused kernel.

    One query over the cache of the self-attention, 6 heads of 64, microseconds per call, SDPA / products:

    | | keys 27 | 64 | 256 | 448 |
    |---|---|---|---|---|
    | float32, batch 1 | 7 / 9 | 8 / 11 | 15 / 17 | 23 / 25 |
    | float32, batch 16 | 41 / 32 | 66 / 62 | 186 / 180 | 381 / 313 |
    | bfloat16, batch 1 | 14 / 51 | 25 / 59 | 84 / 74 | 146 / 55 |
    | bfloat16, batch 16 | 169 / 153 | 336 / 188 | 1329 / 568 | 2395 / 390 |
    """
    if query.device.type != "cpu":
        return False
    return query.dtype == torch.float32 or query.shape[0] * key.shape[2] <= 128


def attend_by_products(query: Tensor, key_t: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Exact attention of few queries by two batched matrix products.

    Args:
        query: `(n, queries, features)`; n counts pairs of sequence and head.
        key_t: `(n, features, keys)`.
        value: `(n, keys, features)`.
        scale: Factor of the scores.
        mask: Added to the scores, broadcastable to `(n, queries, keys)`; None for no mask.

    Returns:
        `(n, queries, features)`.
    """
    if mask is None:
        # With beta = 0 the addend is not read: any view that broadcasts will do.
        scores = torch.baddbmm(key_t[:, :1], query, key_t, beta=0, alpha=scale)
    else:
        scores = torch.baddbmm(mask, query, key_t, alpha=scale)
    return torch.bmm(torch.softmax(scores, dim=-1), value)


def prefers_product_in_place(states: Tensor) -> bool:
    """Whether the cross-attention's keys are projected to where and in the order that they are stored in.

    On a GPU they are, and the values too, for the memory: it was not measured for speed.

    Milliseconds for one layer of 1500 frames, projected and put in order / projected in order, on a Xeon with AMX:

    | | d 384 | d 512 |
    |---|---|---|
    | float32 | 2.0 / 1.5 | 4.9 / 2.6 |
    | float32, held to AVX2 | 2.8 / 2.1 | 6.9 / 4.3 |
    | bfloat16 | 0.8 / 0.4 | 1.3 / 0.7 |
    """
    if states.is_cuda:
        return is_plain_call(states) and not torch.is_grad_enabled()
    return is_plain_inference(states) and not upcasts(states)


def prefers_stored_cross(device_type: str, audios: int) -> bool:
    """Whether the cross-attention's keys and values are stored, rather than attending to the encoder states.

    On a GPU a batch attends to the states: `2 · layers` times less is kept, and nothing is projected. As many bytes
    are read: both products of a layer read the states, where one would read the keys and one the values (only a fused
    kernel would read them once). So tiny.en decodes a batch of 32 10.7 times as fast as Transformers on an H200.

    Args:
        device_type: Of the model.
        audios: How many are decoded together.
    """
    return device_type == "cpu" or audios == 1
