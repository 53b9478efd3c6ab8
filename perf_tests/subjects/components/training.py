"""One training step without its optimiser: forward, loss, backward."""

import torch
from torch import Tensor

from .component import Component

# Of each gradient so many numbers are compared, evenly spread.
SAMPLES = 4096


class TrainingStep(Component):
    """Forward and backward on labels; the gradients of the step before are dropped first, as optimisers do."""

    def prepare(self) -> None:
        """Put the model into training mode (Whisper trains without dropout); make the labels."""
        self.model.train()
        self.labels = self.random_tokens(self.work.new_tokens)

    @torch.enable_grad()
    def compute(self) -> Tensor:
        """The loss; the gradients are left in the parameters."""
        self.model.zero_grad(set_to_none=True)
        loss: Tensor = self.model(input_features=self.features, labels=self.labels).loss
        loss.backward()
        return loss.detach()

    def outputs(self) -> tuple[Tensor, ...]:
        """The loss, and numbers of each parameter's gradient."""
        loss = self.compute()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        samples = tuple(g.flatten()[:: max(1, g.numel() // SAMPLES)].clone() for g in gradients)
        self.model.zero_grad(set_to_none=True)
        return (loss, *samples)
