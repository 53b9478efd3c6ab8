"""A Whisper of fixed code that is timed before each flash round of ``generate`` on a CPU, so that runs can be compared.

The control alone does not take all of the machine's drift out of a comparison: a shared machine's memory bandwidth and
its clocks drift apart, and flash uses the two, the interpreter and the caches in other proportions than the original.
So does nothing but another Whisper of the same size that is as lean. This is one, with weights of its own: no code
under test can change what it does. It does the operators of Whisper's encoder (Radford et al., 2022) and of greedy
decoding that attends to the encoder's states, for one audio in float32, whatever the case's batch and dtype; its
numbers mean nothing. ``runs/statistics.py`` has the formula.

Measured on a shared 2-core AMD EPYC over 30 processes of unchanged code (tiny.en ``single``, 28 pairs each): the
median logarithm of control over flash varied by 1.8 % from process to process, that with the yardstick by 0.7 %.

Its products and sums are oneDNN's and FBGEMM's, as flash's are: MKL's, which ``F.linear`` calls, take up to 8 % more
or less by where the operands happen to lie.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from perf_tests.matrix.cases import CHECKPOINTS, ENCODER_POSITIONS, MEL_FRAMES, Cell
from perf_tests.matrix.components import setting_of

Clock = Callable[[], float]
# Another one for any other work: readings compare with those of the same version alone.
VERSION = 2
# Parts that the vocabulary's rows are summed up in, which cores share.
_VOCABULARY_PARTS = 4


class Reading(NamedTuple):
    """The seconds of both parts: the encoder, bound by arithmetic, and decoding, by the memory and the interpreter."""

    encoder: float
    decoding: float


class _Layer(NamedTuple):
    """Weights ``(out, in)`` and biases."""

    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    expand: Tensor
    expand_bias: Tensor
    narrow: Tensor


class _Cross(NamedTuple):
    """The same of a cross-attention; ``keys`` and ``values`` fold a head's projections of the states into a query."""

    query: Tensor
    keys: Tensor
    values: Tensor
    out: Tensor


class Yardstick:
    """The work of one cell and its weights, about the size of the cell's own while it is alive.

    It is timed by ``clock``, which must be the one of the rounds that it is read beside.
    """

    def __init__(self, cell: Cell, clock: Clock) -> None:
        self._cell, self._clock = cell, clock
        checkpoint = CHECKPOINTS[cell.checkpoint]
        self._width, self._heads = checkpoint.d_model, checkpoint.heads
        self._head_width = self._width // self._heads
        self._tokens = setting_of(cell.setting).new_tokens
        self._encoder: list[_Layer] = []
        self._decoder: list[_Layer] = []
        self._cross: list[_Cross] = []
        self.rebuild()

    def rebuild(self) -> None:
        """Make the same weights once more, elsewhere in memory, when those of the layers are gone."""
        for layers in (self._encoder, self._decoder, self._cross):
            layers.clear()
        cell, checkpoint = self._cell, CHECKPOINTS[self._cell.checkpoint]
        width, heads, head_width = self._width, self._heads, self._head_width
        self._generator = torch.Generator().manual_seed(0)
        self._features = self._noise(1, checkpoint.mel_bins, MEL_FRAMES)
        self._convolutions = self._noise(width, checkpoint.mel_bins, 3), self._noise(width, width, 3)
        self._bias = self._noise(width)
        self._norm_weights = torch.ones(width, dtype=torch.float32), torch.zeros(width, dtype=torch.float32)
        self._encoder = [self._make_layer(checkpoint.ffn) for _ in range(checkpoint.encoder_layers)]
        # Stored transposed where flash's are.
        self._decoder = [self._make_layer(checkpoint.ffn, transposed=True) for _ in range(cell.decoder_layers)]
        self._cross = [
            _Cross(
                self._noise(width, width).t(),
                self._noise(heads, head_width, width),
                self._noise(heads, width, head_width),
                self._noise(width, width).t(),
            )
            for _ in range(cell.decoder_layers)
        ]
        parts, columns = _VOCABULARY_PARTS, -(-checkpoint.vocab_size // _VOCABULARY_PARTS)
        self._vocabulary = self._noise(width * parts, columns)
        rows = torch.arange(width * parts, dtype=torch.int32)
        self._vocabulary_rows = rows.view(width, parts).t().reshape(-1)
        self._vocabulary_offsets = torch.arange(0, width * parts, width, dtype=torch.int32)
        self._embedding = self._noise(1, width)
        self._cache = self._noise(cell.decoder_layers, 2, 1, heads, self._tokens, head_width)
        self._unread = torch.zeros((), dtype=torch.float32)

    @torch.no_grad()
    def measure(self) -> Reading:
        """Do the work once."""
        start = self._clock()
        states = self._encode()
        middle = self._clock()
        self._decode(states)
        return Reading(middle - start, self._clock() - middle)

    def _encode(self) -> Tensor:
        """The states, ``(1500, width)``."""
        shape = 1, ENCODER_POSITIONS, self._width
        first, second = self._convolutions
        hidden = F.gelu(F.conv1d(self._features, first, padding=1))
        hidden = F.gelu(F.conv1d(hidden, second, stride=2, padding=1)).transpose(1, 2).contiguous()
        for layer in self._encoder:
            qkv = _multiply(self._norm(hidden), layer.qkv, layer.qkv_bias)
            query, key, value = qkv.view(*shape[:2], 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(shape)
            hidden = _multiply_and_add(mixed, layer.out, self._bias, hidden)
            expanded = _multiply(self._norm(hidden), layer.expand, layer.expand_bias, "gelu")
            hidden = _multiply_and_add(expanded, layer.narrow, self._bias, hidden)
        return self._norm(hidden)[0]

    def _decode(self, states: Tensor) -> None:
        """All tokens, one by one."""
        frames, features = _pack(states, self._heads), _pack(states.t(), self._heads)
        for position in range(self._tokens):
            int(self._step(position, frames, features).argmax(-1))

    def _step(self, position: int, frames: Tensor, features: Tensor) -> Tensor:
        """The logits that follow a position, ``(1, vocabulary)``."""
        hidden = self._embedding
        for layer, cross, (keys, values) in zip(self._decoder, self._cross, self._cache, strict=True):
            qkv = _multiply(self._norm(hidden), layer.qkv, layer.qkv_bias).view(3, self._heads, 1, -1)
            keys[0, :, position : position + 1] = qkv[1]
            values[0, :, position : position + 1] = qkv[2]
            cached = keys[:, :, : position + 1], values[:, :, : position + 1]
            mixed = F.scaled_dot_product_attention(qkv[:1], *cached).reshape(1, -1)
            hidden = _multiply_and_add(mixed, layer.out, self._bias, hidden)
            query = _multiply(self._norm(hidden), cross.query, self._bias).view(self._heads, 1, -1)
            folded = torch.baddbmm(self._unread, query, cross.keys, beta=0, alpha=self._head_width**-0.5)[:, 0]
            weights = torch.softmax(_multiply(folded, frames), dim=-1)
            mixed = torch.bmm(_multiply(weights, features).unsqueeze(1), cross.values).reshape(1, -1)
            hidden = _multiply_and_add(mixed, cross.out, self._bias, hidden)
            expanded = _multiply(self._norm(hidden), layer.expand, layer.expand_bias, "gelu")
            hidden = _multiply_and_add(expanded, layer.narrow, self._bias, hidden)
        weights = self._norm(hidden).expand(_VOCABULARY_PARTS, -1).reshape(-1)
        sums = F.embedding_bag(
            self._vocabulary_rows,
            self._vocabulary,
            self._vocabulary_offsets,
            mode="sum",
            per_sample_weights=weights,
        )
        return sums.view(1, -1)

    def _norm(self, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, (self._width,), *self._norm_weights)

    def _make_layer(self, expanded: int, *, transposed: bool = False) -> _Layer:
        def weight(outputs: int, inputs: int) -> Tensor:
            return self._noise(inputs, outputs).t() if transposed else self._noise(outputs, inputs)

        return _Layer(
            weight(3 * self._width, self._width),
            self._noise(3 * self._width),
            weight(self._width, self._width),
            weight(expanded, self._width),
            self._noise(expanded),
            self._noise(self._width, expanded),
        )

    def _noise(self, *shape: int) -> Tensor:
        """Numbers that neither overflow nor become denormal on their way through the layers."""
        return (torch.rand(shape, generator=self._generator, dtype=torch.float32) - 0.5).mul_(0.05)


def is_available() -> bool:
    """Whether PyTorch was built with what the work is made of."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """``x @ weight.T + bias``, and what follows."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
    return product


def _multiply_and_add(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """``x @ weight.T + bias + residual``."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
    return product


def _pack(weight: Tensor, rows: int) -> Tensor:
    """A weight in the order in which oneDNN multiplies it fastest by so many rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return packed


Measure = Callable[[], Reading]


def make_record(readings: Sequence[Reading]) -> dict[str, Any]:
    """The record for the key ``yardstick``, from the reading of each round."""
    parts = zip(*readings, strict=True)
    return {"version": VERSION, "rounds_seconds": dict(zip(Reading._fields, map(list, parts), strict=True))}
