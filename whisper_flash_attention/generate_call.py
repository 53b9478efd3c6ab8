"""What one call of `generate` knows about itself, while it runs."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .generation import FastGenerationMixin


class NotHandledError(Exception):
    """The loop does not handle this call; Transformers' own does."""


@dataclass
class GenerateCall:
    """What one call of `generate` knows about itself.

    Attributes:
        model: Whose call it is: a processor may well call another model.
        fast: Whether the loop may be used.
        keeps_states: Whether encoder states are kept for another pass over the same audio (temperature fallback).
        features: `(batch, mel_bins, frames)`, the features that `states` belong to.
        states: `(batch, positions, d)`, encoder states at hand.
        capacity: Decoder positions of the cache that a loop of Transformers' gets; None where it makes its own.
    """

    model: "FastGenerationMixin"
    fast: bool
    keeps_states: bool = False
    features: Tensor | None = None
    states: Tensor | None = None
    capacity: int | None = None

    def states_of(self, features: Tensor) -> Tensor | None:
        """The states of `features`, where all of them have been encoded before."""
        if self.features is None or self.states is None or self.features.shape[1:] != features.shape[1:]:
            return None
        rows = []
        for feature in features:
            same = [i for i, known in enumerate(self.features) if torch.equal(feature, known)]
            if not same:
                return None
            rows.append(same[0])
        return self.states if rows == list(range(len(self.states))) else self.states[rows]


current_call: ContextVar[GenerateCall | None] = ContextVar("current_call", default=None)


def call_of(model: "FastGenerationMixin") -> GenerateCall | None:
    """The call of `generate` that `model` is in, if the innermost one is its own."""
    call = current_call.get()
    return call if call is not None and call.model is model else None
