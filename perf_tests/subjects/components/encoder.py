"""The encoder: features in, states out."""

import torch
from torch import Tensor

from .component import Component


class Encoder(Component):
    """The encoder on a whole batch."""

    @torch.no_grad()
    def compute(self) -> Tensor:
        """The states, (batch, 1500, width)."""
        states: Tensor = self.model.get_encoder()(self.features)[0]
        return states

    def outputs(self) -> tuple[Tensor, ...]:
        return (self.compute(),)
