"""From a checkpoint on the disk to the first token. The files are in the system's cache: what is timed is the work."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perf_tests.subjects.weights import LOAD_ARGUMENTS

from .component import Component


class Load(Component):
    """``from_pretrained`` on a folder, the move to the device, and ``generate`` of one token."""

    def prepare(self) -> None:
        """Save the model; let go of it."""
        self._folder = tempfile.TemporaryDirectory(prefix="perf-load-")
        self._class: Any = type(self.model)
        self.model.save_pretrained(self._folder.name)
        self.model = nn.Module()

    def release(self) -> None:
        self._folder.cleanup()
        super().release()

    def compute(self) -> Tensor:
        """The first token, (batch, 1). The model of the round before is let go first."""
        self._load()
        return self.generate()

    def _load(self) -> None:
        self.model = nn.Module()
        arguments = LOAD_ARGUMENTS[self.implementation]
        model = self._class.from_pretrained(Path(self._folder.name), dtype=self.place.dtype, **arguments)
        self.model = model.eval().to(self.place.device)

    @torch.no_grad()
    def outputs(self) -> tuple[Tensor, ...]:
        """The first token's logits, (batch, vocabulary)."""
        self._load()
        given = self.model.generate(self.features, **self.arguments, return_dict_in_generate=True, output_logits=True)
        return (given.logits[0],)

    def tokens(self) -> Tensor:
        return self.compute()
