"""What a tensor looks like from outside, and zeros of such looks in memory that is never touched."""

import mmap
from typing import NamedTuple

import torch


class Layout(NamedTuple):
    """What a tensor looks like from outside."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Layout":
        return cls(tensor.shape, tensor.stride(), tensor.dtype)

    def zeros(self) -> torch.Tensor:
        """A tensor of zeros on the CPU, in memory that the system clears at its first use."""
        reach = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        elements = 0 if 0 in self.shape else reach + 1
        if not elements:
            return torch.empty_strided(self.shape, self.strides, dtype=self.dtype)
        # A mapping of its own, and not calloc: memory that was in use before, calloc would fill.
        memory = mmap.mmap(-1, elements * self.dtype.itemsize)
        return torch.frombuffer(memory, dtype=self.dtype).as_strided(self.shape, self.strides)
