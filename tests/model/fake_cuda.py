"""Fake CUDA: the code that runs on a GPU, run without one and without numbers.

PyTorch's fake tensors know shape, dtype, strides and device, and refuse whatever would read a number back. That they
can say `cuda` in a PyTorch without CUDA takes a device guard that does nothing, which is put there for the whole
process: `fake_cuda_cases.py` therefore runs in one of its own.
"""

import ctypes
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from whisper_flash_attention import plain, weights, xformers_backend

CUDA = torch.device("cuda", 0)
BLOCK = 512
"""Bytes to whose multiples PyTorch's allocator rounds on CUDA."""

# Places in the registry of guards (c10/core/DeviceType.h).
_CUDA, _META = 1, 14


def register_guard() -> None:
    """Let CUDA have the guard of the meta device, which does nothing."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    registry = (ctypes.c_void_p * (_META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    registry[_CUDA] = registry[_META]


class Result(NamedTuple):
    """A tensor that an operator returned."""

    operator: str
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class Watch(TorchDispatchMode):
    """Follows the memory of the device, and the operators that use it.

    What an operator needs within itself is not seen: the workspaces of convolutions and products, and the copy that a
    layer norm makes of what is not contiguous, as the modules' hidden states are not and `encoder_pass`'s are.

    Attributes:
        alive: Bytes of tensors that are there.
        peak: The most that were there at once, since it was last set.
        kernels: How often each operator was called that is no view and makes no tensor without numbers.
        attentions: Shapes and strides of the queries, keys and values that were handed to xFormers.
        results: What they returned anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.kernels: Counter[str] = Counter()
        self.attentions: list[list[tuple[torch.Size, tuple[int, ...]]]] = []
        self.results: list[Result] = []
        self._storages = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if func is torch.ops.prim.device.default:  # asked of a fake tensor by an operator
            return result
        tensors = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        for tensor in tensors:
            self._follow(tensor)
        if not func.is_view and "empty" not in func.name():
            self.kernels[str(func).removeprefix("aten.").removesuffix(".default")] += 1
            if func._schema.is_mutable:
                return result
            self.results += [Result(str(func), each.shape, each.dtype, each.device) for each in tensors]
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.device.type != "cuda" or storage in self._storages:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._storages[storage] = size
        weakref.finalize(storage, self._free, size)
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def _free(self, size: int) -> None:
        self.alive -= size

    def begin(self) -> None:
        """Forget everything but what is alive."""
        self.peak = self.alive
        self.kernels.clear()
        self.attentions.clear()
        self.results.clear()

    def attend(self, query: Any, key: Any, value: Any, attn_bias: Any = None, p: float = 0, scale: Any = None) -> Any:
        """xFormers' attention."""
        self.attentions.append([(each.shape, each.stride()) for each in (query, key, value)])
        self.kernels["memory_efficient_attention"] += 1
        return query.new_empty(query.shape)


def fused_attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, **options: Any
) -> torch.Tensor:
    """What PyTorch for CUDA does: attention by a kernel that stores no scores. For the CPU it knows of none."""
    options.pop("enable_gqa", None)
    if attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, **options)[0]
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, attn_mask, False, dropout_p, **options)[0]


def _places(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return id(value), value.shape, value.dtype
    return tuple(map(_places, value)) if isinstance(value, tuple) else value


@contextmanager
def fake_cuda() -> Iterator[Watch]:
    """Make tensors fake in the block, on CUDA and in float16 unless told otherwise, and let the package take them."""
    watch = Watch()
    with (
        pytest.MonkeyPatch.context() as patch,
        FakeTensorMode(),
        watch,
        torch.device(CUDA),
        torch.no_grad(),
    ):
        before = torch.get_default_dtype()
        patch.setattr(F, "scaled_dot_product_attention", fused_attention)
        torch.set_default_dtype(torch.float16)
        # To the package a fake tensor is one that only looks like numbers, and rightly so.
        patch.setattr(plain, "_PLAIN_TENSORS", plain._PLAIN_TENSORS | {FakeTensor})
        patch.setattr(plain, "_is_plain_parameter", lambda parameter: type(parameter) in plain._PLAIN_TENSORS)
        patch.setattr(weights, "_places", _places)  # its numbers lie nowhere
        ops = xformers_backend.Ops(
            SimpleNamespace(memory_efficient_attention=watch.attend),  # type: ignore[arg-type]
            SimpleNamespace(LowerTriangularMask=object, LowerTriangularFromBottomRightMask=object),  # type: ignore[arg-type]
        )
        patch.setattr(xformers_backend, "load", lambda device_type: ops if device_type == "cuda" else None)
        patch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**40))
        try:
            yield watch
        finally:
            torch.set_default_dtype(before)
