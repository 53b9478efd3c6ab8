"""Measuring the rows: original and flash in one process, round by round in turn."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from transformers.modeling_outputs import BaseModelOutput

from perf_tests.common.intervals import Estimate, estimate_speedup
from perf_tests.machine.place import Place
from perf_tests.machine.watch import StateWatch
from perf_tests.matrix.cases import CHECKPOINTS, Cell
from perf_tests.matrix.plan import cpu_computes
from perf_tests.matrix.vocabulary import vocabulary_of
from perf_tests.subjects.audio import Speech
from perf_tests.subjects.subject import Subject, make_features
from perf_tests.subjects.weights import Weights

from .tokens import find_first_difference

IMPLEMENTATIONS = ("original", "flash")


class Row(NamedTuple):
    """What is timed: so many tokens of so many clips, by a checkpoint with so many decoder layers.

    ``part`` is ``generate`` for the whole call, or ``decode`` where the encoder's outputs are given.
    """

    checkpoint: str
    decoder_layers: int
    batch_size: int
    new_tokens: int
    rounds: int
    part: str = "generate"
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """The work in words."""
        size = f"batch {self.batch_size}, {self.new_tokens} tokens"
        return f"{self.checkpoint}-{self.decoder_layers}, {size}{', decoding alone' if self.part == 'decode' else ''}"


_WHOLE = (
    Row("tiny.en", 4, 1, 25, 20),
    Row("tiny.en", 2, 1, 25, 20),
    Row("base.en", 6, 1, 25, 20),
    Row("tiny.en", 4, 4, 64, 8),
    Row("tiny.en", 4, 16, 64, 8),
)
_DECODING = tuple(row._replace(part="decode") for row in (_WHOLE[0], _WHOLE[-1]))
ROWS = tuple(row._replace(dtype=dtype) for dtype in ("float32", "bfloat16") for row in (*_WHOLE, *_DECODING))


class Result(NamedTuple):
    """A measured row: median seconds of both, and the ratio of flash to original.

    Without a ratio, ``reason`` says why. ``first_difference`` is the place of the first token that is not the
    original's, ``None`` where all are. ``foreign_cpu_cores`` is how many cores others kept busy meanwhile.
    """

    row: Row
    ratio: Estimate | None = None
    original: float | None = None
    flash: float | None = None
    first_difference: int | None = None
    rounds: dict[str, list[float]] | None = None
    foreign_cpu_cores: float | None = None
    reason: str | None = None

    def record(self) -> dict[str, Any]:
        """The row in plain numbers, for JSON."""
        return {
            "name": self.row.name,
            **{key: value for key, value in self.row._asdict().items() if key != "rounds"},
            "ratio": self.ratio._asdict() if self.ratio else None,
            "original": self.original,
            "flash": self.flash,
            "tokens_equal": None if self.ratio is None else self.first_difference is None,
            "first_difference": self.first_difference,
            "rounds": self.rounds,
            "foreign_cpu_cores": self.foreign_cpu_cores,
            "reason": self.reason,
        }


class Decoding(Subject):
    """A subject that gets the encoder's outputs, (batch, positions, width), in place of features."""

    def generate(self, **other: Any) -> torch.Tensor:
        """Decode; return the new tokens."""
        outputs = BaseModelOutput(last_hidden_state=self.features)
        tokens: torch.Tensor = self.model.generate(encoder_outputs=outputs, **{**self.arguments, **other})
        return tokens


class Workshop:
    """Builds the subjects of the rows; the weights of a cell are made once."""

    def __init__(self, weights: str, speech: Speech) -> None:
        self._kind = weights
        self._speech = speech
        self._weights: dict[Cell, Weights] = {}

    @contextmanager
    def borrow(self, implementation: str, row: Row) -> Iterator[Subject]:
        """A freshly built subject for the length of a ``with`` block.

        Raises:
            RuntimeError: pretrained weights cannot be had, or not with so few layers.
        """
        cell = Cell(row.checkpoint, row.decoder_layers, "batched")
        if self._kind == "pretrained" and row.decoder_layers != CHECKPOINTS[row.checkpoint].decoder_layers:
            raise RuntimeError("pretrained weights have all layers")
        if cell not in self._weights:
            self._weights[cell] = Weights(cell, self._kind)
        place = Place(torch.device("cpu"), getattr(torch, row.dtype))
        features = make_features(cell, self._speech)[: row.batch_size].to(place.dtype)
        if row.part == "decode":
            features = self._encode(cell, features, place)
        arguments = vocabulary_of(CHECKPOINTS[cell.checkpoint].vocab_size).generate_arguments(row.new_tokens)
        model = self._weights[cell].build(implementation, place.device, place.dtype)
        kind = Decoding if row.part == "decode" else Subject
        subject = kind(implementation, model, features, arguments, place)
        del model, features
        try:
            yield subject
        finally:
            del subject.model, subject.features
            gc.collect()

    def _encode(self, cell: Cell, features: torch.Tensor, place: Place) -> torch.Tensor:
        """The original's encoder outputs, given to both so that both decode the same."""
        model = self._weights[cell].build("original", place.device, place.dtype)
        with torch.no_grad():
            states: torch.Tensor = model.get_encoder()(features).last_hidden_state
        return states


def measure_row(row: Row, workshop: Workshop, rounds: int | None) -> Result:
    """Time ``row``, in ``rounds`` rounds or as many as the row asks for; a row that cannot be had says why."""
    if row.dtype != "float32" and not cpu_computes(row.dtype):
        return Result(row, reason=f"this CPU (or its torch) cannot compute in {row.dtype}")
    try:
        return _time(row, workshop, rounds or row.rounds)
    except RuntimeError as error:
        return Result(row, reason=str(error).strip().splitlines()[0])


def _time(row: Row, workshop: Workshop, rounds: int) -> Result:
    with workshop.borrow("original", row) as original, workshop.borrow("flash", row) as flash:
        # These are the warm-up too.
        difference = find_first_difference(flash.generate().tolist(), original.generate().tolist())
        seconds: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS}
        with StateWatch("cpu") as watch:
            for _ in range(rounds):
                for subject in (original, flash):
                    start = perf_counter()
                    subject.run_round()
                    seconds[subject.implementation].append(perf_counter() - start)
    return Result(
        row,
        ratio=estimate_speedup(seconds["flash"], seconds["original"]),
        original=median(seconds["original"]),
        flash=median(seconds["flash"]),
        first_difference=difference,
        rounds=seconds,
        foreign_cpu_cores=watch.foreign_cpu_cores,
    )
