"""Where models and their input live."""

from typing import NamedTuple

import torch


class Place(NamedTuple):
    """Where models and features live, and in which precision."""

    device: torch.device
    dtype: torch.dtype

    def synchronize(self) -> None:
        """Wait until the device has done all it was given; a CPU always has."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
