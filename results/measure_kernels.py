"""How long each attention kernel and linear layer takes here: the figures behind `whisper_flash_attention/kernels.py`.

    python results/measure_kernels.py [--device cpu] > kernels.md

Microseconds per call, the best of a few repetitions, as tables in Markdown. On a GPU calls are replayed from a graph,
as decoding does, so that launching them costs nothing. A kernel that does not take a call says why below its table.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attend
from transformers import WhisperConfig

from whisper_flash_attention import (
    WhisperFlashAttentionForConditionalGeneration,
    cpu_attention,
    cpu_library,
    kernels,
    xformers_backend,
)
from whisper_flash_attention.cpu_step import CompiledStep
from whisper_flash_attention.decode_step import _attend_to_states, project_cross, run_decoder
from whisper_flash_attention.kv_cache import CacheShape, CrossBuffer, WhisperKVCache
from whisper_flash_attention.weights import HeadProjections

WIDTHS = (384, 512, 768, 1024)
HEAD_DIM = 64
SCALE = HEAD_DIM**-0.5
FRAMES = 1500
VOCABULARY = 51864
LAYERS = 4
CACHED = 64
CALLS = 20
REPETITIONS = 5
TORCH_KERNELS = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


class Row(NamedTuple):
    """A row of a table, and what is measured in it, by column."""

    name: str
    calls: dict[str, Callable[[], Any]]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="the narrowest model alone, once, to try this script")
    options = parser.parse_args()
    device = torch.device(options.device)
    widths = WIDTHS[:1] if options.small else WIDTHS
    on_cuda = device.type == "cuda"
    print(f"{torch.cuda.get_device_name() if on_cuda else 'CPU'}, torch {torch.__version__}, microseconds per call")
    tables = {
        f"encoder self-attention, {FRAMES} frames": encoder_rows,
        "self-attention of one query": self_attention_rows,
        f"cross-attention of one query, {FRAMES} frames": cross_attention_rows,
        "linear layers": linear_rows,
    }
    if not on_cuda:
        tables[f"a decoding step of {LAYERS} layers behind {CACHED} positions, to the logits"] = step_rows
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    dtypes = dtypes if on_cuda else dtypes[::-1]
    for dtype in dtypes[:1] if options.small else dtypes:
        for title, rows in tables.items():
            title = f"{title}, {str(dtype).removeprefix('torch.')}"
            print_table(title, rows(widths, dtype, device), device, 1 if options.small else REPETITIONS)


def encoder_rows(widths: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[Row]:
    """Queries, keys and values as the encoder has them: heads behind positions in memory."""
    for width in widths:
        for batch in (1, 8):
            query, key, value = (
                torch.randn(batch, FRAMES, width // HEAD_DIM, HEAD_DIM, device=device).to(dtype).transpose(1, 2)
                for _ in range(3)
            )
            calls = {"xFormers": partial(by_xformers, query, key, value)}
            for name in TORCH_KERNELS:
                calls[name.lower().removesuffix("_attention")] = partial(by_torch, name, query, key, value)
            if device.type == "cpu":
                for level in compiled_levels():
                    calls[cpu_library.LEVELS[level]] = partial(
                        cpu_attention.run, query, key, value, SCALE, threads=torch.get_num_threads(), level=level
                    )
            yield Row(f"d {width}, batch {batch}", calls)


def self_attention_rows(widths: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[Row]:
    """One query behind a cache, with the mask of a captured step."""
    for width in widths:
        for batch, span in ((1, 64), (1, 448), (32, 64), (32, 256), (32, 448)):
            shape = batch, width // HEAD_DIM, 448, HEAD_DIM
            query = torch.randn(*shape[:2], 1, HEAD_DIM, device=device).to(dtype)
            key, value = (torch.randn(shape, device=device).to(dtype)[:, :, :span] for _ in "kv")
            mask = torch.zeros(1, span, dtype=dtype, device=device)
            calls = {
                "SDPA": partial(attend, query, key, value, attn_mask=mask, scale=SCALE),
                "products": partial(by_products, query, key, value, mask),
            }
            yield Row(f"d {width}, batch {batch}, keys {span}", calls)


def cross_attention_rows(widths: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[Row]:
    """One query over stored keys and values, and over the encoder states."""
    for width in widths:
        keys = nn.Linear(width, width, bias=False, device=device, dtype=dtype)
        values = nn.Linear(width, width, device=device, dtype=dtype)
        layer: Any = SimpleNamespace(cross_heads=HeadProjections.of(keys, values, width // HEAD_DIM))
        for batch in (1, 4, 8, 32):
            shape = batch, width // HEAD_DIM, FRAMES, HEAD_DIM
            query = torch.randn(*shape[:2], 1, HEAD_DIM, device=device).to(dtype)
            key, value = (torch.randn(shape, device=device).to(dtype) for _ in "kv")
            states = torch.randn(batch, FRAMES, width, device=device).to(dtype)
            calls = {
                "stored, SDPA": partial(attend, query, key, value, scale=SCALE),
                "stored, products": partial(by_products, query, key, value, None),
                "states": partial(_attend_to_states, layer, query.squeeze(2), states),
            }
            yield Row(f"d {width}, batch {batch}", calls)


def linear_rows(widths: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[Row]:
    """The decoder's products."""
    for width in widths:
        for outputs, inputs in ((VOCABULARY, width), (width, width), (4 * width, width), (width, 4 * width)):
            weight = torch.randn(outputs, inputs, device=device).to(dtype)
            for rows in (1, 32):
                x = torch.randn(rows, inputs, device=device).to(dtype)
                calls = {"F.linear": partial(F.linear, x, weight), "ours": partial(kernels.linear, x, weight)}
                yield Row(f"({outputs}, {inputs}), M {rows}", calls)


def step_rows(widths: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[Row]:
    """The plain step and the compiled one, at each level that this processor has."""
    for width in widths:
        config = WhisperConfig(
            vocab_size=VOCABULARY,
            d_model=width,
            encoder_layers=1,
            decoder_layers=LAYERS,
            decoder_attention_heads=width // HEAD_DIM,
            encoder_attention_heads=width // HEAD_DIM,
            decoder_ffn_dim=4 * width,
            encoder_ffn_dim=width,
        )
        weights = WhisperFlashAttentionForConditionalGeneration(config).to(dtype).decoder_weights()
        for batch in (1, 4, 16):
            shape = CacheShape(LAYERS, batch, width // HEAD_DIM, HEAD_DIM, CACHED + 1, FRAMES)
            cache = WhisperKVCache(shape, dtype, device, CrossBuffer.empty(shape, dtype, device))
            cache.self_buffer.normal_()
            project_cross(weights, cache.cross_buffer, torch.randn(batch, FRAMES, width).to(dtype), 0)
            tokens, position = torch.zeros(batch, 1, dtype=torch.long), torch.tensor([CACHED])
            calls: dict[str, Callable[[], Any]] = {
                "plain": partial(run_decoder, weights, cache, tokens.view(-1), position, CACHED + 1, None)
            }
            step = CompiledStep.bind(weights, cache)
            for level in compiled_levels() if step is not None else ():
                calls[cpu_library.LEVELS[level]] = partial(
                    step.run, tokens, None, None, CACHED, 1, threads=torch.get_num_threads(), level=level
                )
            yield Row(f"d {width}, batch {batch}", calls)


def compiled_levels() -> range:
    """Those that serve here."""
    return range(0 if cpu_library.why_not() else cpu_library.level() + 1)


def by_xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention by xFormers.

    Raises:
        RuntimeError: it has none for the call.
    """
    out = xformers_backend.attend(query, key, value, causal=False, dropout=0.0, scale=SCALE)
    if out is None:
        raise RuntimeError("no kernel")
    return out


def by_torch(name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention by the kernel of PyTorch called `name`."""
    with sdpa_kernel(getattr(SDPBackend, name)):
        return attend(query, key, value, scale=SCALE)


def by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention as the captured step computes it."""
    flat = query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), value.flatten(0, 1)
    return kernels.attend_by_products(*flat, SCALE, mask)


@torch.no_grad()
def print_table(title: str, rows: Iterator[Row], device: torch.device, repetitions: int) -> None:
    """Measure and print a table, line by line."""
    print(f"\n| {title} |", end="")
    head: list[str] = []
    problems: dict[str, None] = {}
    for name, calls in rows:
        if not head:
            head = list(calls)
            print(f" {' | '.join(head)} |\n|---|{'---:|' * len(head)}")
        cells = []
        for column, call in calls.items():
            try:
                cells.append(f"{1e6 * seconds_of(call, device, repetitions):.1f}")
            except RuntimeError as error:  # NotImplementedError is one too
                cells.append("-")
                problems[f"{column}: {(str(error).strip() or repr(error)).splitlines()[0][:200]}"] = None
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print("".join(f"\n{problem}" for problem in problems), end="\n" if problems else "")


def seconds_of(call: Callable[[], Any], device: torch.device, repetitions: int) -> float:
    """The seconds that one call takes, at best."""
    call()
    if device.type == "cpu":
        return min(wall_seconds(call) for _ in range(repetitions))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    graph.replay()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return min(wall_seconds(replay) for _ in range(repetitions)) / CALLS


def wall_seconds(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
