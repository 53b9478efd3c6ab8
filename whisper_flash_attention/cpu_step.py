"""The compiled decoding step: all of a decoder in one call of a C++ library, on a CPU.

PyTorch's operators read weights that lie by rows, for one row of activations, at 10 to 60 % of the memory's speed (on a
Zen 3), and a step of many of them spends milliseconds between them. `csrc/` reads every weight once, where it
lies, in float32, bfloat16 and float16. Where it is missing, and for what it does not take, the step of `decode_step.py`
serves, which stays the reference.

A row is a token with a slot of the cache, a position in it and the first position that it sees: prompts, batches,
beams and padding are one code.
"""

import ctypes
import itertools
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import cpu_library
from .cpu_library import DTYPES
from .kv_cache import WhisperKVCache
from .plain import is_plain_inference, is_plain_tensor
from .weights import DecoderWeights, LayerWeights, Norm, Projection

MOST_ROWS = 32
"""Up to so many new tokens go through the compiled step together; PyTorch's products are better at more."""


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("epsilon", ctypes.c_double))


class _Projection(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("self_norm", _Norm),
        *((name, _Projection) for name in ("query", "key", "value", "self_out")),
        ("cross_norm", _Norm),
        *((name, _Projection) for name in ("cross_query", "cross_out")),
        ("mlp_norm", _Norm),
        *((name, _Projection) for name in ("fc1", "fc2")),
        *((name, ctypes.c_void_p) for name in ("self_keys", "self_values", "cross_keys_t", "cross_values")),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "layers", "heads", "head_dim", "feed_forward")),
        *((name, ctypes.c_int64) for name in ("tokens", "vocabulary_size", "places")),
        *((name, ctypes.c_int64) for name in ("slots", "beams", "capacity", "frames")),
        ("layer", ctypes.POINTER(_Layer)),
        ("token_embedding", ctypes.c_void_p),
        ("place_embedding", ctypes.c_void_p),
        ("norm", _Norm),
        ("vocabulary", _Projection),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "fresh", "stride", "start")),
        *((name, ctypes.c_void_p) for name in ("tokens", "places", "first", "logits", "scratch")),
        *((name, ctypes.c_int64) for name in ("scratch_size", "threads", "level")),
    )


class _RefusedError(Exception):
    """A tensor is not what the library reads."""


class CompiledStep:
    """A decoder and a cache, bound for one call of `generate`.

    It holds aliases of all that the library reads, so that nothing is freed under it, whatever becomes of the
    parameters meanwhile. Make it with `bind`.
    """

    def __init__(self, weights: DecoderWeights, cache: WhisperKVCache, library: ctypes.CDLL) -> None:
        assert cache.cross_buffer is not None
        self._library, self._dtype = library, cache.self_buffer.dtype
        self._held: list[Tensor] = []
        shape = cache.shape
        width, audio = shape.heads * shape.head_dim, (shape.audios, shape.heads)
        hidden = weights.layers[0].fc1.weight.shape[0]
        slots = (shape.batch, shape.heads, shape.capacity, shape.head_dim)
        self._layers = (_Layer * shape.layers)()
        for index, (bound, layer) in enumerate(zip(self._layers, weights.layers, strict=True)):
            for name, norm in zip(("self_norm", "cross_norm", "mlp_norm"), _norms(layer), strict=True):
                setattr(bound, name, self._norm(norm, width))
            square = (*layer.qkv, layer.self_out, layer.cross_q, layer.cross_out)
            for name, projection in zip(_SQUARE, square, strict=True):
                setattr(bound, name, self._projection(projection, width, width))
            bound.fc1 = self._projection(layer.fc1, hidden, width)
            bound.fc2 = self._projection(layer.fc2, width, hidden)
            bound.self_keys, bound.self_values = (self._address(part, *slots) for part in cache.self_layers[index])
            bound.cross_keys_t = self._address(cache.cross_buffer.keys_t[index], *audio, shape.head_dim, shape.frames)
            bound.cross_values = self._address(cache.cross_buffer.values[index], *audio, shape.frames, shape.head_dim)
        tokens, places = len(weights.token_embedding), len(weights.position_embedding)
        self.vocabulary_size, self.feed_forward, self.cache = len(weights.vocabulary.weight), hidden, cache
        self._decoder = _Decoder(
            dtype=DTYPES[self._dtype],
            layers=shape.layers,
            heads=shape.heads,
            head_dim=shape.head_dim,
            feed_forward=hidden,
            tokens=tokens,
            vocabulary_size=self.vocabulary_size,
            places=places,
            slots=shape.batch,
            beams=shape.beams,
            capacity=shape.capacity,
            frames=shape.frames,
            layer=self._layers,
            token_embedding=self._address(weights.token_embedding, tokens, width),
            place_embedding=self._address(weights.position_embedding, places, width),
            norm=self._norm(weights.norm, width),
            vocabulary=self._projection(weights.vocabulary, self.vocabulary_size, width),
        )
        self._scratch = torch.empty(0)
        self._key = next(_keys)
        _bound[self._key] = self

    @classmethod
    def bind(cls, weights: DecoderWeights, cache: WhisperKVCache) -> Self | None:
        """Bind a decoder and a cache that the compiled step serves; None for others."""
        if not is_plain_inference(cache.self_buffer) or cache.self_buffer.dtype not in DTYPES:
            return None
        # Asked for only now: a process that decodes on a GPU is told nothing about a CPU.
        library = cpu_library.library()
        if library is None or cache.cross_buffer is None or not weights.layers:
            return None
        try:
            return cls(weights, cache, library)
        except _RefusedError:
            return None

    def __call__(
        self,
        tokens: Tensor,
        start: int,
        *,
        stride: int = 1,
        places: Tensor | None = None,
        first: Tensor | None = None,
    ) -> Tensor:
        """Run new tokens through the decoder, write their keys and values, and return the last one's logits.

        Args:
            tokens: `(sequences, new)` int64, the new token ids; sequence i lies in slot `i · stride` of the cache.
            start: The position in the cache of each sequence's first new token; those before it are written.
            stride: Slots from one sequence to the next.
            places: `(sequences, new)` int64, which position embeddings they get; their positions where None.
            first: `(sequences, new)` int64, the first position in the cache that each sees; 0 where None.

        Returns:
            `(sequences, vocabulary)`, in the model's dtype.

        Raises:
            IndexError: A token, a place or a position is out of range; nothing was written then.
            ValueError: A tensor is of another dtype or shape.
        """
        buffer, cross = self.cache.self_buffer, self.cache.cross_buffer
        assert cross is not None
        sizes = (self.vocabulary_size, self.feed_forward)
        return _operator(tokens, places, first, buffer, *cross, *sizes, start, stride, self._key)  # type: ignore[no-any-return]

    def run(
        self,
        tokens: Tensor,
        places: Tensor | None,
        first: Tensor | None,
        start: int,
        stride: int,
        *,
        threads: int,
        level: int,
    ) -> Tensor:
        """What the operator does, by so many threads at a level of `LEVELS`."""
        given = [None if each is None else each.contiguous() for each in (tokens, places, first)]
        are_alike = all(each is None or (each.dtype == torch.long and each.shape == tokens.shape) for each in given)
        if tokens.dim() != 2 or not tokens.numel() or not are_alike:
            raise ValueError(
                "The compiled decoding step: tokens, places and first are int64 of one shape, of two axes."
            )
        logits = torch.empty(len(tokens), self.vocabulary_size, dtype=self._dtype)
        needed = self._library.wfa_scratch_size(ctypes.byref(self._decoder), tokens.numel(), threads)
        if len(self._scratch) < needed:
            self._scratch = torch.empty(needed)
        call = _Call(
            tokens.numel(),
            tokens.shape[1],
            stride,
            start,
            *(None if each is None else each.data_ptr() for each in (*given, logits, self._scratch)),
            len(self._scratch),
            threads,
            level,
        )
        result = self._library.wfa_step(ctypes.byref(self._decoder), ctypes.byref(call))
        cpu_library.check(result, "The compiled decoding step")
        return logits

    def _norm(self, norm: Norm, width: int) -> _Norm:
        return _Norm(self._address(norm.weight, width), self._bias(norm.bias, width), norm.epsilon)

    def _projection(self, projection: Projection, outputs: int, inputs: int) -> _Projection:
        weight, bias = projection
        return _Projection(self._address(weight, outputs, inputs), self._bias(bias, outputs))

    def _bias(self, bias: Tensor | None, outputs: int) -> int | None:
        return None if bias is None else self._address(bias, outputs)

    def _address(self, tensor: Tensor, *shape: int) -> int:
        """Where the numbers of a tensor of that shape lie, which is held from now on.

        Raises:
            _RefusedError: They do not lie in the memory, in rows, as mere numbers of the cache's dtype.
        """
        # The alias is looked at, since another thread may give a parameter other numbers at any time.
        held = tensor.detach()
        is_plain = is_plain_tensor(tensor) and is_plain_tensor(held)
        if not is_plain or held.dtype != self._dtype or held.shape != shape:
            raise _RefusedError
        self._held.append(held)
        return held.data_ptr()


_SQUARE = ("query", "key", "value", "self_out", "cross_query", "cross_out")


def _norms(layer: LayerWeights) -> tuple[Norm, ...]:
    return layer.self_norm, layer.cross_norm, layer.mlp_norm


# By number, since operators take tensors and numbers alone.
_bound: WeakValueDictionary[int, CompiledStep] = WeakValueDictionary()
_keys = itertools.count()


def _run(
    tokens: Tensor,
    places: Tensor | None,
    first: Tensor | None,
    cache: Tensor,
    cross_keys_t: Tensor,
    cross_values: Tensor,
    vocabulary_size: int,
    feed_forward: int,
    start: int,
    stride: int,
    bound: int,
) -> Tensor:
    threads, level = torch.get_num_threads(), cpu_library.level()
    return _bound[bound].run(tokens, places, first, start, stride, threads=threads, level=level)


def _fake(tokens: Tensor, places: Tensor | None, first: Tensor | None, cache: Tensor, *rest: Any) -> Tensor:
    return cache.new_empty(len(tokens), rest[2])


def _flops(
    tokens: torch.Size,
    places: torch.Size | None,
    first: torch.Size | None,
    cache: torch.Size,
    cross_keys_t: torch.Size,
    cross_values: torch.Size,
    vocabulary_size: int,
    feed_forward: int,
    start: int,
    *rest: Any,
    **kwargs: Any,
) -> int:
    """Operations of a step, two for each number of a weight that a row meets and for each key and value it looks at."""
    (sequences, new), (layers, _, _, heads, _, head_dim), frames = tokens, cache, cross_values[3]
    width, seen = heads * head_dim, sum(range(start + 1, start + new + 1))
    per_row = 2 * (6 * width**2 + 2 * width * feed_forward) + 4 * frames * width
    per_sequence = layers * (new * per_row + 4 * seen * width) + 2 * width * vocabulary_size
    return int(sequences * per_sequence)


# An operator of PyTorch's, so that profilers, counters and fake tensors see it; `torch.library.custom_op` takes several
# times as long per call. The tensors that are bound already are arguments for them alone.
_library = torch.library.Library(__package__, "FRAGMENT")
_library.define(
    "decoder_step(Tensor tokens, Tensor? places, Tensor? first, Tensor(a!) cache, Tensor cross_keys_t, "
    "Tensor cross_values, SymInt vocabulary_size, SymInt feed_forward, SymInt start, int stride, int bound) -> Tensor"
)
_library.impl("decoder_step", _run, "CPU")
_library.impl("decoder_step", _fake, "Meta")
_operator = getattr(torch.ops, __package__).decoder_step.default
register_flop_formula(_operator.overloadpacket)(_flops)
