"""What the components have in common: a subject whose round is a part of the model's work."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from perf_tests.machine.place import Place
from perf_tests.matrix.cases import CHECKPOINTS, Cell
from perf_tests.matrix.components import WORKS
from perf_tests.matrix.floors import Phase, phases_of
from perf_tests.matrix.vocabulary import vocabulary_of
from perf_tests.subjects.audio import Speech
from perf_tests.subjects.subject import Subject
from perf_tests.subjects.weights import SEED


class Component(Subject):
    """One implementation's part of the model, with the input that the cell's work gives it.

    Inputs are made from a seed in float32 and rounded to the place's dtype, the same for every implementation.
    """

    def __init__(
        self,
        implementation: str,
        model: WhisperForConditionalGeneration,
        features: Tensor,
        arguments: Mapping[str, Any],
        place: Place,
        *,
        cell: Cell,
        speech: Speech,
    ) -> None:
        super().__init__(implementation, model, features, arguments, place)
        self.cell = cell
        self.speech = speech
        self.work = WORKS[cell.setting]
        self.dims = CHECKPOINTS[cell.checkpoint]
        self.prepare()

    def prepare(self) -> None:
        """Make the input that a round takes. What a round keeps (caches) it makes itself, in its warm-up."""

    def outputs(self) -> tuple[Tensor, ...]:
        """What parity compares, part by part."""
        raise NotImplementedError

    def tokens(self) -> Tensor | None:
        """The tokens that must equal the original's, (batch, tokens); ``None`` where the work chooses none."""
        return None

    def findings(self) -> dict[str, Any]:
        """What the work finds out beyond time and memory, under the recorded keys."""
        return {}

    @property
    def positions(self) -> int:
        """How long a sequence may become, prompt included."""
        return len(vocabulary_of(self.dims.vocab_size).prompt) + self.work.new_tokens

    def phases(self) -> tuple[Phase, ...]:
        """The least that a round has to do."""
        stores = stores_cross(self.model, self.work.batch_size, self.positions)
        return phases_of(self.cell, self.place.dtype.itemsize, batch_size=len(self.features), stores_cross=stores)

    def release(self) -> None:
        """Let go of caches and inputs too, whatever they are called."""
        self.__dict__ = {"implementation": self.implementation, "place": self.place}

    def random_states(self, positions: int, seed: int = 0) -> Tensor:
        """States like those behind a layer norm, (batch, positions, width)."""
        return self._on_device(torch.randn(self._shape(positions, self.dims.d_model), generator=_generator(seed)))

    def random_tokens(self, length: int, seed: int = 0) -> Tensor:
        """Text tokens, (batch, length)."""
        high = min(self.dims.vocab_size, 50256)
        tokens = torch.randint(high, self._shape(length), generator=_generator(seed))
        return tokens.to(self.place.device)

    def _shape(self, *sizes: int) -> tuple[int, ...]:
        return (self.work.batch_size, *sizes)

    def _on_device(self, states: Tensor) -> Tensor:
        return states.to(self.place.device, self.place.dtype)


def stores_cross(model: Any, audios: int, positions: int) -> bool:
    """Whether an implementation keeps the cross-attention's keys and values, for sequences of up to ``positions``.

    The package's older commits, which ``ab`` measures, ask for both.
    """
    asked = getattr(model, "stores_cross_attention", None)
    if asked is None:
        return True
    return bool(asked(audios, positions) if "positions" in inspect.signature(asked).parameters else asked(audios))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + seed)
