"""Exact counters of one round, in a pass of their own: operators, FLOPs, launches, waits."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from perf_tests.subject import Subject

# Names of the CUDA runtime's and driver's calls, as the profiler gives them.
LAUNCHES = (
    "cudaLaunchKernel",
    "cuLaunchKernel",
    "cudaGraphLaunch",
    "cuGraphLaunch",
    "cudaLaunchCooperativeKernel",
)
SYNCS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cuStreamSynchronize",
    "cuCtxSync",
)


class Counters(NamedTuple):
    """Counts of one round; the last two on CUDA only."""

    aten_ops: int
    flops: int
    kernel_launches: int | None
    host_syncs: int | None


def count_round(subject: Subject) -> Counters:
    """Count a round of a warmed-up ``subject``: operators of the uncaptured step, launches of a captured."""
    # A replayed CUDA graph dispatches nothing, so an implementation that captures offers to step without.
    uncaptured = getattr(subject.model, "uncaptured", nullcontext)
    with uncaptured(), OperatorCounter() as counter:
        subject.run_round()
    launches = syncs = None
    if subject.place.device.type == "cuda":
        subject.run_round()
        launches, syncs = count_cuda_calls(_cuda_event_names(subject))
    return Counters(counter.operators, counter.flops, launches, syncs)


class OperatorCounter(TorchDispatchMode):
    """Counts every operator dispatched while it is active, and the operations of those with a formula."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = 0
        self.flops = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.operators += 1
        formula = FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))
        return result


def count_cuda_calls(names: Iterable[str]) -> tuple[int, int]:
    """Count launches (a graph's replay is one) and host waits among the names of CUDA API calls."""
    launches = syncs = 0
    for name in names:
        launches += name.startswith(LAUNCHES)
        syncs += name.startswith(SYNCS)
    return launches, syncs


def _cuda_event_names(subject: Subject) -> list[str]:
    """Names of what a round calls, less the waits that the round's end and the profiler's end add."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        subject.generate()
    names = [event.name for event in profiler.events() or ()]
    if "cudaDeviceSynchronize" in names:  # the profiler's own, when it stops
        names.remove("cudaDeviceSynchronize")
    return names


def _shapes(formula: Callable[..., int]) -> Callable[..., int]:
    """Let ``formula`` take the shapes of the tensors among an operator's positional arguments."""

    def of_arguments(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return formula(*(arg.shape if isinstance(arg, torch.Tensor) else arg for arg in args))

    return of_arguments


@_shapes
def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: object) -> int:
    """Both products of attention, 2·B·H·Q·K·(d_k + d_v); shapes are (batch, heads, length, head size)."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[-2] * (width + value[-1])


@_shapes
def linear_flops(x: torch.Size, weight: torch.Size, *_: object) -> int:
    """A product of (..., k) with a weight of (n, k): 2·rows·k·n."""
    return 2 * x.numel() * weight[0]


@_shapes
def convolution_flops(x: torch.Size, weight: torch.Size, _bias: object, *arguments: Any) -> int:
    """A convolution by oneDNN: arguments after the bias are padding, stride, dilation, groups.

    2 · batch · output positions · output channels · input channels per group · kernel size.
    """
    padding, stride, dilation, _groups = arguments[:4]
    positions = 1
    for length, kernel, pad, step, spread in zip(x[2:], weight[2:], padding, stride, dilation, strict=True):
        positions *= (length + 2 * pad - spread * (kernel - 1) - 1) // step + 1
    return 2 * x[0] * positions * weight.numel()


@_shapes
def matrix_vector_flops(matrix: torch.Size, *_: object) -> int:
    """A matrix times a vector: 2·rows·columns."""
    return 2 * matrix.numel()


@_shapes
def added_matrix_vector_flops(_bias: object, matrix: torch.Size, *_: object) -> int:
    """A matrix times a vector, and a vector added: 2·rows·columns, the sum not counted, as in ``addmm``."""
    return 2 * matrix.numel()


@_shapes
def added_batch_flops(_bias: object, a: torch.Size, b: torch.Size, *_: object) -> int:
    """Products of matrices, summed over the batch: 2·b·m·k·n."""
    return 2 * a.numel() * b[-1]


def _collect_formulas() -> dict[Any, Callable[..., int]]:
    """Torch's formulas and those it lacks, by operator; oneDNN's operators exist where torch has oneDNN."""
    aten, mkldnn = torch.ops.aten, torch.ops.mkldnn
    own = {
        (aten, "_scaled_dot_product_flash_attention_for_cpu"): attention_flops,
        (aten, "_scaled_dot_product_fused_attention_overrideable"): attention_flops,
        (aten, "mv"): matrix_vector_flops,
        (aten, "dot"): matrix_vector_flops,
        (aten, "addmv"): added_matrix_vector_flops,
        (aten, "addbmm"): added_batch_flops,
        (aten, "mkldnn_linear"): linear_flops,
        (aten, "mkldnn_convolution"): convolution_flops,
        (mkldnn, "_linear_pointwise"): linear_flops,
        (mkldnn, "_convolution_pointwise"): convolution_flops,
    }
    formulas: dict[Any, Callable[..., int]] = dict(flop_registry)
    for (namespace, name), formula in own.items():
        if hasattr(namespace, name):
            formulas.setdefault(getattr(namespace, name), formula)
    return formulas


FORMULAS = _collect_formulas()
