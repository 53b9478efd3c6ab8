"""What this machine can do at most: memory bandwidth, and matrix throughput per dtype.

Measured once per session, where component cases are compared with it; a few seconds. Each figure is that of the best of
the ways at hand, by the median of its calls: what the machine keeps up, as a component's median round is compared with
it. On a shared machine single calls are twice as fast, while nobody else reads. Both are limits as seen from PyTorch:
what no library here reaches is not known to be possible.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from perf_tests.matrix.estimate import Speed
from perf_tests.matrix.plan import cpu_computes

from .place import Place

# Larger than a last-level cache: 256 MiB per buffer.
BUFFER_BYTES = 256 * 1024 * 1024
# Each way gets a short look, since the session waits for them all, and the best one a longer.
LOOK_SECONDS = 0.06
LONGER_LOOK_SECONDS = 0.4
# (rows, inner, columns): a product as in the encoder of small.en on a CPU, of a large checkpoint on a GPU, and a square
# one.
CPU_SHAPES = ((1500, 768, 3072), (1536, 1536, 1536))
CUDA_SHAPES = ((24000, 1280, 5120), (8192, 8192, 8192))


class Way(NamedTuple):
    """One way of moving bytes or multiplying matrices, by its name, and how much of it one call is."""

    name: str
    amount: float
    call: Callable[[], Any]


@torch.no_grad()
def measure_limits(place: Place) -> dict[str, Any]:
    """Measure the machine as seen from ``place``; the record for the key ``limits`` (``schema.py``)."""
    moved = _best(_moves(place), place)
    flops: dict[str, float] = {}
    ways: dict[str, str] = {}
    for dtype in _dtypes(place):
        name = str(dtype).removeprefix("torch.")
        best = _best(_products(place, dtype), place)
        if place.device.type == "cpu" and flops:  # half precision may be multiplied in float32, which comes first
            best = max(best, (flops["float32"], f"upcast: {ways['float32']}"))
        flops[name], ways[name] = best
    # Twice, some seconds apart: who shares the memory takes half of it and more, for tenths of a second at a time.
    bandwidth, bandwidth_way = max(moved, _best(_moves(place), place))
    return {
        "memory_bytes_per_second": bandwidth,
        "memory_way": bandwidth_way,
        "flops_per_second": flops,
        "flops_ways": ways,
    }


@torch.no_grad()
def look_at_speed(dtype: torch.dtype) -> Speed:
    """How fast this machine's CPU is, in a few tenths of a second: for a forecast, not for a limit."""
    place = Place(torch.device("cpu"), dtype)
    x, weight, norm = torch.ones(1500, 384, dtype=dtype), torch.ones(1536, 384, dtype=dtype), torch.ones(1, 384)
    large = torch.ones(BUFFER_BYTES // 4096, 384, dtype=dtype)
    ways = (
        Way("product", 2.0 * 1500 * 384 * 1536, partial(F.linear, x, weight)),
        Way("sum", large.nbytes, large.sum),
        *(Way(f"{rows} rows", large.nbytes, partial(F.linear, x[:rows], large)) for rows in (1, 4)),
        Way("layer norms", 100, lambda: [F.layer_norm(norm, (384,)) for _ in range(100)]),
    )
    flops, moved, row, rows, calls = (_rate(way, place, LOOK_SECONDS) for way in ways)
    return Speed(flops, moved, row, rows, 1 / calls)


def _dtypes(place: Place) -> list[torch.dtype]:
    """The dtypes to measure: float32, what half precision is fast here, and always the session's own."""
    chosen = {torch.float32: None, place.dtype: None}
    if place.device.type == "cuda":
        chosen |= {torch.float16: None, torch.bfloat16: None}
    elif torch.ops.mkldnn._is_mkldnn_bf16_supported() and cpu_computes("bfloat16"):
        chosen |= {torch.bfloat16: None}
    return [*chosen]


def _moves(place: Place) -> Iterator[Way]:
    """Reading by a sum, a maximum, a matrix-vector and (two streams, the fastest here) a dot product; and a copy.

    Nothing in place: a processor may write back while it reads, and so move more than any component can, which reads
    weights and caches.
    """
    rows, columns = 4096, BUFFER_BYTES // 4 // 4096
    source = torch.ones(rows, columns, device=place.device)
    target = torch.ones_like(source)
    vector = torch.ones(columns, device=place.device)
    yield Way("sum", BUFFER_BYTES, source.sum)
    yield Way("matrix-vector product", BUFFER_BYTES, lambda: torch.mv(source, vector))
    yield Way("maximum", BUFFER_BYTES, source.amax)
    yield Way("dot product", 2 * BUFFER_BYTES, lambda: torch.dot(source.view(-1), target.view(-1)))
    yield Way("copy", 2 * BUFFER_BYTES, lambda: target.copy_(source))


def _products(place: Place, dtype: torch.dtype) -> Iterator[Way]:
    """Products by ``matmul``, ``linear``, oneDNN's linear operator and the 1x1 convolution over channels-last."""
    on_cuda = place.device.type == "cuda"
    onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    for rows, inner, columns in CUDA_SHAPES if on_cuda else CPU_SHAPES:
        x = torch.randn(rows, inner, device=place.device).to(dtype)
        weight = torch.randn(columns, inner, device=place.device).to(dtype)
        calls: dict[str, Callable[[], Any]] = {
            "matmul": partial(torch.matmul, x, weight.t().contiguous()),
            "linear": partial(F.linear, x, weight),
        }
        if not on_cuda:
            image = x.t().reshape(1, inner, rows, 1).contiguous(memory_format=torch.channels_last)
            calls["convolution"] = partial(F.conv2d, image, weight.view(columns, inner, 1, 1))
            if onednn and dtype != torch.float16:
                calls["oneDNN linear"] = partial(
                    torch.ops.mkldnn._linear_pointwise, x, weight, None, "none", [], "none"
                )
        for name, call in calls.items():
            yield Way(f"{name} {rows}x{inner}x{columns}", 2.0 * rows * inner * columns, call)


def _best(ways: Iterable[Way], place: Place) -> tuple[float, str]:
    """The largest amount per second that a way keeps up, and which way."""
    way = max(ways, key=lambda way: _rate(way, place, LOOK_SECONDS))
    return _rate(way, place, LONGER_LOOK_SECONDS), way.name


def _rate(way: Way, place: Place, seconds: float) -> float:
    """The median amount per second in about ``seconds``, at least two calls; the first of all may be slower."""
    way.call()
    rates: list[float] = []
    start = time.perf_counter()
    while len(rates) < 2 or time.perf_counter() - start < seconds:
        place.synchronize()
        before = time.perf_counter()
        way.call()
        place.synchronize()
        rates.append(way.amount / (time.perf_counter() - before))
    return median(rates)
