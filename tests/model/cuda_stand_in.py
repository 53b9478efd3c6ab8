"""A stand-in for CUDA's graphs and streams, so that captured decoding is tested whole on a CPU.

A graph records every operator of a step with the tensors that it was given, and a replay calls them again on the same
tensors: like the real one it knows addresses alone, sees whatever is written there, and nothing that Python would do.
As while a real stream is captured, nothing that the step writes lasts, and the host may not wait for a number.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from whisper_flash_attention import captured_decoding

NOT_PERMITTED = "CUDA error: operation not permitted when stream is capturing"


class Recorder(TorchDispatchMode):
    """Keeps the operators that are called, and puts back what they write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._written: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError(NOT_PERMITTED)
        named = {each.name: value for each, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(named[argument.name])
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    def _keep(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._written:
            whole = torch.empty(0, dtype=tensor.dtype).set_(storage)
            self._written[storage.data_ptr()] = whole, whole.clone()

    def put_back(self) -> None:
        for whole, before in self._written.values():
            whole.copy_(before)


class Graph:
    """What a stand-in for `torch.cuda.graph` has recorded."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.replays = 0

    def pool(self) -> tuple[int, int]:
        return id(self), 0

    # Nobody asks a graph in which mode its tensors were made.
    @torch.inference_mode()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            if all(each.alias_info is None for each in func._schema.returns):
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    old.copy_(new)


class Stream:
    """Remembers whom it waits for."""

    def __init__(self, device: Any = None) -> None:
        self.waits_for: list[Stream] = []

    def wait_stream(self, other: "Stream") -> None:
        self.waits_for.append(other)


class Device:
    """What the tests see and say of the stand-in.

    Attributes:
        graphs: Those that were captured, in order.
        attempts: Captures that were begun.
        refusal: What captures fail with; None where they do not.
        memory: Of the device, in bytes.
        current: The current stream.
    """

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self.attempts = 0
        self.refusal: str | None = None
        self.memory = 2**40
        self.current = Stream()

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def capture(self, graph: Graph, *, pool: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert stream is self.current
        assert pool is None or pool in [each.pool() for each in self.graphs]
        assert capture_error_mode == "thread_local"
        self.attempts += 1
        recorder = Recorder()
        try:
            with recorder:
                yield
                if self.refusal is not None:
                    raise RuntimeError(self.refusal)
        finally:
            recorder.put_back()
        graph.calls = recorder.calls
        self.graphs.append(graph)


@contextmanager
def cpu_as_cuda() -> Iterator[Device]:
    """Have models on the CPU decode as on a GPU in the block, by graphs on a stream of their own."""
    device = Device()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured_decoding, "CAPTURED_DEVICE", "cpu")
        patch.setattr(captured_decoding, "_capture_failed", threading.Event())
        patch.setattr(captured_decoding, "_streams", {})
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", device.capture)
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "stream", device.stream)
        patch.setattr(torch.cuda, "current_stream", lambda _: device.current)
        patch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=device.memory))
        yield device
