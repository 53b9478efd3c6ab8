"""What a GPU machine has, as JSON on standard output: GPU, driver, libraries, which attention kernels answer.

    python results/describe_environment.py > environment.json

Runs on a CPU too, where it says that there is no GPU.
"""

import importlib
import json
import platform
import sys
from typing import Any

import torch

from perf_tests.machine.describe import describe_machine
from whisper_flash_attention import xformers_backend

DTYPES = ("float16", "bfloat16", "float32")
# (batch, heads, queries, keys, causal): the encoder's attention, a prompt, a decoding step, several behind a cache.
CALLS = {
    "encoder": (1, 6, 1500, 1500, False),
    "prompt": (1, 6, 4, 4, True),
    "step": (1, 6, 1, 64, False),
    "behind a cache": (1, 6, 4, 64, True),
}
TORCH_KERNELS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")


def main() -> None:
    """Print the description."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    description: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": describe_machine(device),
        "modules": {name: try_import(name) for name in ("xformers.ops", "mslk.attention.fmha", "pynvml", "triton")},
        "xformers": None,
        "torch_kernels": None,
    }
    if device == "cuda":
        description["xformers"] = {dtype: try_xformers(getattr(torch, dtype)) for dtype in DTYPES}
        description["torch_kernels"] = {dtype: try_torch_kernels(getattr(torch, dtype)) for dtype in DTYPES}
    json.dump(description, sys.stdout, indent=4)
    print()


def try_import(name: str) -> str:
    """`ok`, or why the module cannot be imported."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken wheel raises anything
        return first_line(error)
    return "ok"


def try_xformers(dtype: torch.dtype) -> dict[str, str]:
    """For each kind of call: the largest difference from PyTorch's own attention in float32, or the refusal."""
    answers = {}
    for name, (batch, heads, queries, keys, causal) in CALLS.items():
        query, key, value = make_inputs(batch, heads, queries, keys, dtype)
        try:
            out = xformers_backend.attend(query, key, value, causal=causal, dropout=0.0, scale=0.125)
            answers[name] = "no kernel" if out is None else difference(out, query, key, value, causal)
        except Exception as error:
            answers[name] = first_line(error)
    return answers


def try_torch_kernels(dtype: torch.dtype) -> dict[str, str]:
    """Which of PyTorch's kernels take the encoder's call: the difference, or the refusal."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    answers = {}
    batch, heads, queries, keys, causal = CALLS["encoder"]
    query, key, value = make_inputs(batch, heads, queries, keys, dtype)
    for name in TORCH_KERNELS:
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                out = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.125)
            answers[name.lower()] = difference(out, query, key, value, causal)
        except Exception as error:
            answers[name.lower()] = first_line(error)
    return answers


def make_inputs(batch: int, heads: int, queries: int, keys: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Query, key and value, (batch, heads, positions, 64)."""
    generator = torch.Generator().manual_seed(0)
    shapes = (queries, keys, keys)
    return tuple(torch.randn(batch, heads, n, 64, generator=generator).to("cuda", dtype) for n in shapes)


def difference(out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> str:
    """The largest difference of `out` from attention computed in float64 with a mask aligned bottom-right."""
    scores = 0.125 * query.double() @ key.double().transpose(-1, -2)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(
            scores.shape[-1] - scores.shape[-2]
        )
        scores = scores.masked_fill(~seen, -torch.inf)
    exact = scores.softmax(-1) @ value.double()
    return f"off by {(out.double() - exact).abs().max().item():.1e}"


def first_line(error: BaseException) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:200]}"


if __name__ == "__main__":
    main()
