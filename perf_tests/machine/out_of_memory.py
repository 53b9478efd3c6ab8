"""Out of memory, with figures: what was asked for, what was free, and the peak until then. Imports no torch."""

import re
import resource
import sys
from typing import Any

import psutil  # type: ignore[import-untyped]

from perf_tests.common.text import first_line

from .cores import memory_left

_ASKED = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate) ([\d.]+ ?(?:[KMGTP]i?B|bytes|B))\b")
_FREE = re.compile(r"(?:of which )?([\d.]+ [KMGTP]?i?B)(?: is)? free\b")
_GPU = re.compile(r"\bGPU (\d+)\b")
_CPU_ALLOCATORS = ("DefaultCPUAllocator", "not enough memory")


def describe_out_of_memory(error: BaseException) -> str | None:
    """One line with the figures, where ``error`` says that memory ran out; ``None`` for any other error."""
    torch: Any = sys.modules.get("torch")
    text = str(error)
    on_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    on_host = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(name in text for name in _CPU_ALLOCATORS)
    )
    if not (on_gpu or on_host):
        return None
    asked = _ASKED.search(text)
    what = f"out of memory: asked for {_show(asked[1])}" if asked else first_line(error)
    free = _FREE.search(text) if on_gpu else None
    if on_gpu:
        gpu = _GPU.search(text)
        left = free[1] if free else "an unknown amount"
        peak = torch.cuda.max_memory_allocated(int(gpu[1]) if gpu else None) if torch.cuda.is_available() else None
        where = "on the GPU"
    else:
        limited = memory_left()
        free_here = psutil.virtual_memory().available
        left = _gib(free_here if limited is None else min(free_here, limited))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        where = "on the host"
    return f"{what}, {left} free {where}, peak {_gib(peak) if peak is not None else 'unknown'}"


def _show(amount: str) -> str:
    """An amount as an allocator writes it; bare bytes are made readable."""
    number = amount.removesuffix("bytes").removesuffix("B").strip()
    return _gib(int(number)) if number.isdecimal() else amount


def _gib(count: int) -> str:
    """Binary gigabytes, as torch's own messages have them."""
    return f"{count / 2**30:,.2f} GiB"
