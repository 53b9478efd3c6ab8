"""Exact counters of one round, in a pass of their own: operators, FLOPs, launches, waits."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from perf_tests.subjects.subject import Subject

from .flops import count_flops

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
# Rounds of more tokens are counted from shorter ones, whose lengths are so many tokens apart: captured decoding looks
# at the flags of the finished sequences once in 16.
SHORT_TOKENS = 64
STRIDE = 16
# How greedy decoding chooses a token.
TOKEN_CHOICE = torch.ops.aten.argmax.default


class Counters(NamedTuple):
    """Counts of one round; the last two on CUDA only."""

    aten_ops: int
    flops: int
    kernel_launches: int | None
    host_syncs: int | None
    by_operator: dict[str, int]


def count_round(subject: Subject, tokens: int | None = None) -> Counters:
    """Count a round of a warmed-up ``subject``: operators of the uncaptured step, launches and waits of a captured.

    Args:
        subject: What runs.
        tokens: That a round generates, where it is a ``generate`` of a forced number of them.
    """
    with subject.uncaptured(), RoundCounter() as counter:
        subject.run_round()
    launches = syncs = None
    if subject.place.device.type == "cuda":
        launches, syncs = count_launches(partial(_profile, subject), tokens)
    return Counters(counter.operators, counter.flops, launches, syncs, counter.by_operator)


def count_launches(profiled: Callable[[int | None], Iterable[str]], tokens: int | None) -> tuple[int, int]:
    """Count launches (a graph's replay is one) and host waits of a round; long ones from three that are short.

    Greedy decoding launches the same for every token, but for what happens once in ``STRIDE`` of them. So the counts of
    three rounds that are ``STRIDE`` tokens apart tell those of a long one, if they are on one line; else it is counted.

    Args:
        profiled: Runs a round of so many tokens (None: as it is); returns the names of CUDA's calls in it.
        tokens: As for ``count_round``.
    """
    if tokens is not None and tokens > SHORT_TOKENS:
        least = tokens % STRIDE + STRIDE
        first, second, third = (
            count_cuda_calls(profiled(length)) for length in (least, least + STRIDE, least + 2 * STRIDE)
        )
        slopes = [later - earlier for earlier, later in zip(first, second, strict=True)]
        if slopes == [later - earlier for earlier, later in zip(second, third, strict=True)]:
            strides = (tokens - least) // STRIDE
            launches, syncs = (start + strides * slope for start, slope in zip(first, slopes, strict=True))
            return launches, syncs
    return count_cuda_calls(profiled(None))


class OperatorCounter(TorchDispatchMode):
    """Counts every operator dispatched while it is active, and the operations of those with a formula."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[Any] = Counter()
        self.flops = 0

    @property
    def operators(self) -> int:
        """All of them."""
        return self.calls.total()

    @property
    def by_operator(self) -> dict[str, int]:
        """Calls by name, overloads together, the most frequent first."""
        by_name: Counter[str] = Counter()
        for operator, calls in self.calls.items():
            by_name[str(operator.overloadpacket)] += calls
        return dict(by_name.most_common())

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = dict(kwargs or {})
        result = self.compute(func, args, keywords)
        self.calls[func] += 1
        self.flops += count_flops(func, args, keywords, result)
        return result

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)


class RoundCounter(OperatorCounter):
    """Counts a round of ``generate`` in which every token chosen is the first of the vocabulary, a piece of text.

    Transformers cuts a sequence where it finds timestamps, with a few operators for each, so the count of a round would
    depend on which tokens the weights happen to give, and a near-tie that flips would look like a change of code.
    """

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the operator ``func``; the choice of a token comes out as 0, whatever the scores."""
        result = super().compute(func, args, kwargs)
        return torch.zeros_like(result) if func is TOKEN_CHOICE else result


def count_cuda_calls(names: Iterable[str]) -> tuple[int, int]:
    """Count launches (a graph's replay is one) and host waits among the names of CUDA API calls."""
    launches = syncs = 0
    for name in names:
        launches += name.startswith(LAUNCHES)
        syncs += name.startswith(SYNCS)
    return launches, syncs


def _profile(subject: Subject, tokens: int | None) -> list[str]:
    """Names of CUDA's calls in a round, less the waits that the round's end and the profiler's end add.

    CUDA's activities alone: recording the operators takes longer than the round.
    """
    run = subject.compute
    if tokens is not None:
        run = partial(subject.generate, min_new_tokens=tokens, max_new_tokens=tokens)
        if subject.keeps_buffers:
            run()  # of this length there were none yet
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
    names = [event.name for event in profiler.events() or ()]
    if "cudaDeviceSynchronize" in names:  # the profiler's own, when it stops
        names.remove("cudaDeviceSynchronize")
    return names
