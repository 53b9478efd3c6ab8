"""The peak of one round as the allocator saw it, in a pass of its own, weights included.

On CUDA the caching allocator keeps the figures; the implementation must be alone on the device. On a CPU they
come from the profiler's memory events, which repeat to the last byte, whatever else lives in the process.
"""

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from perf_tests.subjects.subject import Subject, collect_garbage

ROUND = "perf_tests: measured round"


class Memory(NamedTuple):
    """Bytes; ``reserved`` on CUDA only."""

    model: int
    peak_allocated: int
    peak_reserved: int | None


def measure_memory(subject: Subject, warm_up: Callable[[], object] | None = None) -> Memory:
    """Measure a freshly built ``subject``: one warm-up round (or ``warm_up``), then the round that counts.

    What an implementation builds and keeps in the warm-up (fused weights, caches) is part of its peak.
    """
    return measure_round(subject, warm_up)[0]


def measure_round(subject: Subject, warm_up: Callable[[], object] | None = None) -> tuple[Memory, Any]:
    """Measure as ``measure_memory`` does; return what the round that counts has computed, too."""
    measure = _measure_cuda if subject.place.device.type == "cuda" else _measure_cpu
    return measure(subject, warm_up or subject.run_round)


def _measure_cuda(subject: Subject, warm_up: Callable[[], object]) -> tuple[Memory, Any]:
    device = subject.place.device
    _drop_workspaces()
    warm_up()
    collect_garbage(subject.place)
    torch.cuda.reset_peak_memory_stats(device)
    output = subject.compute()
    subject.place.synchronize()
    memory = Memory(
        model=model_bytes(subject.model),
        peak_allocated=torch.cuda.max_memory_allocated(device),
        peak_reserved=torch.cuda.max_memory_reserved(device),
    )
    return memory, output


def _drop_workspaces() -> None:
    """Free cuBLAS's workspaces: one for each stream that ever multiplied, in other cases too (32 MiB on a Hopper).

    There is no public name for it. Graphs hold their address, but the case before has let go of its own.
    """
    drop = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if drop is not None:
        drop()


def _measure_cpu(subject: Subject, warm_up: Callable[[], object]) -> tuple[Memory, Any]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        warm_up()
        collect_garbage(subject.place)
        with record_function(ROUND):
            output = subject.compute()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
    storages = model_storages(subject.model)
    model = sum(storages.values())
    return Memory(model, model + peak_beyond(events, frozenset(storages)), None), output


def model_storages(model: torch.nn.Module) -> dict[int, int]:
    """Address and bytes of each distinct storage behind the parameters and buffers."""
    storages = (tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers()))
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of the distinct storages behind the parameters and buffers."""
    return sum(model_storages(model).values())


def peak_beyond(events: Iterable[dict[str, Any]], model_addresses: frozenset[int]) -> int:
    """Peak bytes alive in the round marked ``ROUND`` beyond the model's own storages.

    ``events`` are a profiler trace's ``traceEvents``, which cover the model's life since it was built.
    Counted are the allocations seen in them, so also what warm-up left alive. A model's storage that was
    allocated within the trace (a fused copy that replaced the parameters) is counted with the model, so not
    here; a block that was allocated before the trace is one of the model's, or not this implementation's.
    """
    trace = list(events)
    begin, end = _span(trace)
    memory = sorted(
        (event for event in trace if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0),
        key=lambda event: event["args"]["Ev Idx"],
    )
    alive: dict[int, int] = {}
    total = peak = 0
    for event in memory:
        address, size = event["args"]["Addr"], event["args"]["Bytes"]
        if event["ts"] > end:
            break
        if size > 0:
            alive[address] = size
            total += size
        else:
            total -= alive.pop(address, 0)
        if event["ts"] >= begin:
            peak = max(peak, total)
    of_model = sum(size for address, size in alive.items() if address in model_addresses)
    return peak - of_model


def _span(trace: Iterable[dict[str, Any]]) -> tuple[float, float]:
    for event in trace:
        if event.get("name") == ROUND and "dur" in event:
            return event["ts"], event["ts"] + event["dur"]
    raise ValueError(f"the trace has no event {ROUND!r}")
