"""Decoders of any shape for the compiled step: random weights and caches, and what the plain step makes of them."""

import ctypes
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from whisper_flash_attention import cpu_library
from whisper_flash_attention.cpu_step import CompiledStep
from whisper_flash_attention.decode_step import run_decoder
from whisper_flash_attention.kv_cache import CacheShape, CrossBuffer, WhisperKVCache
from whisper_flash_attention.weights import DecoderWeights, HeadProjections, LayerWeights, Norm, Projection

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VOCABULARY = 210  # not a whole number of vectors


class Plan(NamedTuple):
    """A decoder, a cache, and how many tokens of how many sequences it is to read.

    Attributes:
        fresh: New tokens of each sequence.
        start: Tokens in the cache before them.
        room: Positions in the cache behind them.
        missing: How many of the biases are not there.
    """

    heads: int = 4
    head_dim: int = 16
    feed_forward: int = 100
    frames: int = 50
    sequences: int = 1
    beams: int = 1
    fresh: int = 1
    start: int = 0
    room: int = 2
    layers: int = 1
    dtype: torch.dtype = torch.float32
    missing: float = 0.0
    threads: int = 2

    @property
    def shape(self) -> CacheShape:
        capacity = self.start + self.fresh + self.room
        return CacheShape(self.layers, self.sequences, self.heads, self.head_dim, capacity, self.frames, self.beams)

    def tokens(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(VOCABULARY, (self.sequences, self.fresh), generator=generator)


def at_odd_address(tensor: Tensor) -> Tensor:
    """The same numbers one byte behind where an allocator would put them, as a mapped file may have them."""
    memory = bytearray(1 + tensor.nbytes)
    memory[1:] = tensor.flatten().view(torch.uint8).numpy().tobytes()
    return torch.frombuffer(memory, dtype=tensor.dtype, offset=1).view(tensor.shape)


class Case(NamedTuple):
    """Weights, and a cache that is full of numbers, also where nothing was written yet."""

    weights: DecoderWeights
    cache: WhisperKVCache

    def to(self, dtype: torch.dtype) -> "Case":
        """A copy in a dtype; what are the same weights becomes several."""
        weights = mapped(self.weights, lambda tensor: tensor.detach().to(dtype, copy=True))
        assert self.cache.cross_buffer is not None
        return Case(weights, cache_of(self.cache.shape, self.cache.self_buffer, *self.cache.cross_buffer, dtype=dtype))

    def bind(self) -> CompiledStep:
        step = CompiledStep.bind(*self)
        assert step is not None
        return step


def cache_of(
    shape: CacheShape, self_buffer: Tensor, keys_t: Tensor, values: Tensor, *, dtype: torch.dtype
) -> WhisperKVCache:
    """A cache of its own with those numbers."""
    cache = WhisperKVCache(shape, dtype, CPU, CrossBuffer.empty(shape, dtype, CPU))
    assert cache.cross_buffer is not None
    for target, source in zip((cache.self_buffer, *cache.cross_buffer), (self_buffer, keys_t, values), strict=True):
        target.copy_(source)
    return cache


def mapped(value: Any, change: Any) -> Any:
    """Weights with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if hasattr(value, "_fields"):
        return type(value)(*(mapped(each, change) for each in value))
    return tuple(mapped(each, change) for each in value) if isinstance(value, tuple) else value


def make_case(plan: Plan, seed: int = 0) -> Case:
    """Weights such that attention is sharp and all that is summed matters."""
    generator = torch.Generator().manual_seed(seed)
    width, shape = plan.heads * plan.head_dim, plan.shape

    def numbers(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        return torch.randn(shape, generator=generator).mul_(scale).add_(mean).to(plan.dtype)

    def bias(size: int) -> Tensor | None:
        return None if torch.rand((), generator=generator) < plan.missing else numbers(size, scale=0.2)

    def norm() -> Norm:
        return Norm((width,), numbers(width, scale=0.1, mean=1.0), bias(width), 1e-5)

    def projection(outputs: int, inputs: int, gain: float = 1.3) -> Projection:
        return Projection(numbers(outputs, inputs, scale=gain * inputs**-0.5), bias(outputs))

    def layer() -> LayerWeights:
        key, value = projection(width, width), projection(width, width)
        by_head = key.weight.view(plan.heads, -1, width), value.weight.view(plan.heads, -1, width).transpose(1, 2)
        return LayerWeights(
            self_norm=norm(),
            qkv=(projection(width, width, 2.0), projection(width, width, 2.0), projection(width, width)),
            self_out=projection(width, width),
            cross_norm=norm(),
            cross_q=projection(width, width, 2.0),
            cross_k=key,
            cross_v=value,
            cross_heads=HeadProjections(*by_head, None),
            cross_out=projection(width, width),
            mlp_norm=norm(),
            fc1=projection(plan.feed_forward, width),
            fc2=projection(width, plan.feed_forward),
        )

    weights = DecoderWeights(
        token_embedding=numbers(VOCABULARY, width, scale=0.3),
        position_embedding=numbers(shape.capacity + 1, width, scale=0.6),
        layers=tuple(layer() for _ in range(plan.layers)),
        norm=norm(),
        vocabulary=projection(VOCABULARY, width),
        heads=plan.heads,
    )
    outer = (plan.layers, shape.audios, plan.heads)
    written = numbers(plan.layers, 2, plan.sequences, plan.heads, shape.capacity, plan.head_dim)
    cross = numbers(*outer, plan.head_dim, plan.frames), numbers(*outer, plan.frames, plan.head_dim)
    return Case(weights, cache_of(shape, written, *cross, dtype=plan.dtype))


class Writes(TorchDispatchMode):
    """What the plain step would write to its cache is compared with what was written, and that is what it goes on with.

    Else a last bit of half precision, which float32 and float64 may round differently, would change all that follows.
    """

    def __init__(self, written: Iterable[Tensor]) -> None:
        super().__init__()
        self.written = iter(written)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index_copy_.default:
            written = next(self.written)
            assert_near(written, args[3])
            args = (*args[:3], written.double())
        return func(*args, **(kwargs or {}))


class Read(NamedTuple):
    """What reading tokens gives: the logits, and the cache afterwards."""

    logits: Tensor
    buffer: Tensor


def read(case: Case, tokens: Tensor, start: int, *, threads: int = 2, level: int | None = None, **where: Any) -> Read:
    """Read tokens by the compiled step, from the cache as it is, which stays as it is.

    Whatever the step does not write to its scratch before it reads it is not a number.
    """
    case = Case(case.weights, cache_of(case.cache.shape, case.cache.self_buffer, *cross_of(case), dtype=dtype_of(case)))
    step, level = case.bind(), cpu_library.level() if level is None else level
    needed = step._library.wfa_scratch_size(ctypes.byref(step._decoder), tokens.numel(), threads)
    step._scratch = torch.full((needed,), torch.nan)
    places, first, stride = where.get("places"), where.get("first"), where.get("stride", 1)
    logits = step.run(tokens, places, first, start, stride, threads=threads, level=level)
    return Read(logits, case.cache.self_buffer)


def read_plainly(case: Case, buffer: Tensor, tokens: Tensor, start: int, **where: Any) -> Tensor:
    """The logits of the plain step in float64, where what is now in `buffer` was written."""
    (sequences, fresh), stride = tokens.shape, where.get("stride", 1)
    weights, whole = case.to(torch.float64)
    shape = whole.shape._replace(batch=sequences, beams=sequences // whole.shape.audios)
    cache = cache_of(shape, whole.self_buffer[:, :, ::stride], *cross_of(case), dtype=torch.float64)
    positions, span, places = torch.arange(start, start + fresh), start + fresh, where.get("places")
    first = torch.zeros_like(tokens) if where.get("first") is None else where["first"]
    seen = torch.arange(span)
    hidden = (seen > positions[:, None]) | (seen < first[..., None])
    mask = torch.zeros(hidden.shape, dtype=torch.float64).masked_fill_(hidden, -torch.inf)[:, None]
    places = None if places is None else places.flatten()
    with Writes(buffer[:, :, ::stride, :, start:span].flatten(0, 1)):
        return run_decoder(
            weights, cache, tokens.flatten(), positions, span, mask if hidden.any() else None, places=places
        )


def dtype_of(case: Case) -> torch.dtype:
    return case.cache.self_buffer.dtype


def cross_of(case: Case) -> CrossBuffer:
    assert case.cache.cross_buffer is not None
    return case.cache.cross_buffer


def levels() -> list[int]:
    """Those that this machine has."""
    library = cpu_library._load()
    assert not isinstance(library, str)
    return [level for level in range(len(cpu_library.LEVELS)) if library.wfa_has_level(level)]


def bits(tensor: Tensor) -> Tensor:
    """Its bits, which compare also where they are no number."""
    return tensor.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def assert_same_bits(actual: Read, expected: Read) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(bits(one), bits(other))


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Up to the order of sums in float32, and the last bit of half precision; what is not finite is the same."""
    assert actual.shape == expected.shape
    # What is too large for half precision is infinite.
    epsilon = 0 if actual.dtype == torch.float32 else torch.finfo(actual.dtype).eps
    expected, actual = expected.to(actual.dtype).double(), actual.double()
    finite = expected.where(expected.isfinite(), 0).abs()
    error = (actual - expected).abs()
    near = error <= epsilon * finite + 4e-6 * finite.max()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    assert bool((near | same).all()), f"{error.nan_to_num().max():.2g} away, where {finite.max():.2g} is the largest"


def assert_right(case: Case, tokens: Tensor, start: int, *, threads: int = 2, **where: Any) -> Read:
    """On every level, logits and new keys and values are the plain step's, and the rest of the cache is as it was."""
    before = case.cache.self_buffer
    new = (slice(None), slice(None), slice(None, None, where.get("stride", 1)), slice(None))
    new = (*new, slice(start, start + tokens.shape[1]))
    for level in levels():
        actual = read(case, tokens, start, threads=threads, level=level, **where)
        assert actual.logits.dtype == before.dtype
        assert_near(actual.logits, read_plainly(case, actual.buffer, tokens, start, **where))
        old = actual.buffer.clone()
        old[new] = before[new]
        assert torch.equal(bits(old), bits(before))
    return actual
