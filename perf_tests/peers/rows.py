"""Measuring the rows: original and flash in one process, round by round in turn."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from transformers.modeling_outputs import BaseModelOutput

from perf_tests.audio import Speech
from perf_tests.cases import CHECKPOINTS, Cell
from perf_tests.intervals import Estimate, estimate_speedup
from perf_tests.measure.counters import count_round
from perf_tests.measure.device import StateWatch
from perf_tests.measure.memory import measure_memory
from perf_tests.models import Weights
from perf_tests.plan import cpu_computes
from perf_tests.subject import Place, Subject, make_features
from perf_tests.vocabulary import vocabulary_of

from .bars import METRICS, Row, Work
from .tokens import find_first_difference

IMPLEMENTATIONS = ("original", "flash")
# Operators are counted for two lengths: their difference is what the tokens cost, without encoder and set-up.
FEWER_TOKENS = 5


class Result(NamedTuple):
    """A measured row; values are in the metric's unit, medians where there are rounds.

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

    @property
    def met(self) -> bool | None:
        """Whether the ratio is within the bar; ``None`` where nothing was measured."""
        return None if self.ratio is None else self.ratio.median <= self.row.bar

    def record(self) -> dict[str, Any]:
        """The row in plain numbers, for JSON."""
        return {
            "name": self.row.name,
            "metric": self.row.metric,
            "unit": METRICS[self.row.metric],
            "dtype": self.row.dtype,
            **self.row.work._asdict(),
            "bar": self.row.bar,
            "aim": self.row.aim,
            "met": self.met,
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
    def borrow(self, implementation: str, work: Work, dtype: str) -> Iterator[Subject]:
        """A freshly built subject for the length of a ``with`` block.

        Raises:
            RuntimeError: pretrained weights cannot be had, or not with so few layers.
        """
        cell = Cell(work.checkpoint, work.decoder_layers, "batched")
        if self._kind == "pretrained" and work.decoder_layers != CHECKPOINTS[work.checkpoint].decoder_layers:
            raise RuntimeError("pretrained weights have all layers")
        if cell not in self._weights:
            self._weights[cell] = Weights(cell, self._kind)
        place = Place(torch.device("cpu"), getattr(torch, dtype))
        features = make_features(cell, self._speech)[: work.batch_size].to(place.dtype)
        if work.part == "decode":
            features = self._encode(cell, features, place)
        arguments = vocabulary_of(CHECKPOINTS[cell.checkpoint].vocab_size).generate_arguments(work.new_tokens)
        model = self._weights[cell].build(implementation, place.device, place.dtype)
        kind = Decoding if work.part == "decode" else Subject
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
    """Measure ``row``, in ``rounds`` rounds or as many as the row asks for; a row that cannot be had says why."""
    if row.dtype != "float32" and not cpu_computes(row.dtype):
        return Result(row, reason=f"this CPU (or its torch) cannot compute in {row.dtype}")
    measure = {"time": _measure_time, "memory": _measure_memory, "operators": _measure_operators}[row.metric]
    try:
        return measure(row, workshop, rounds or row.rounds)
    except RuntimeError as error:
        return Result(row, reason=str(error).strip().splitlines()[0])


def _measure_time(row: Row, workshop: Workshop, rounds: int) -> Result:
    with (
        workshop.borrow("original", row.work, row.dtype) as original,
        workshop.borrow("flash", row.work, row.dtype) as flash,
    ):
        # These are the warm-up too.
        difference = _compare_tokens(original, flash)
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


def _measure_memory(row: Row, workshop: Workshop, rounds: int) -> Result:
    """One profiled round of each, alone: the figure repeats to the last byte."""
    peaks: list[float] = []
    tokens: list[list[list[int]]] = []
    for name in IMPLEMENTATIONS:
        with workshop.borrow(name, row.work, row.dtype) as subject:
            with _silence():
                memory = measure_memory(subject)
            peaks.append(memory.peak_allocated)
            tokens.append(subject.generate().tolist())
    return _exact(row, peaks, find_first_difference(tokens[1], tokens[0]))


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the profiler's own lines off the terminal: it writes them past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _measure_operators(row: Row, workshop: Workshop, rounds: int) -> Result:
    costs: list[float] = []
    tokens: list[list[list[int]]] = []
    for name in IMPLEMENTATIONS:
        with workshop.borrow(name, row.work, row.dtype) as subject:
            tokens.append(subject.generate().tolist())
            counts = []
            vocabulary = vocabulary_of(CHECKPOINTS[row.work.checkpoint].vocab_size)
            for length in (row.work.new_tokens, FEWER_TOKENS):
                subject.arguments = vocabulary.generate_arguments(length)
                counts.append(count_round(subject).aten_ops)
            costs.append((counts[0] - counts[1]) / (row.work.new_tokens - FEWER_TOKENS))
    return _exact(row, costs, find_first_difference(tokens[1], tokens[0]))


def _exact(row: Row, values: list[float], difference: int | None) -> Result:
    original, flash = values
    ratio = Estimate(flash / original, None, None)
    return Result(row, ratio=ratio, original=original, flash=flash, first_difference=difference)


def _compare_tokens(original: Subject, flash: Subject) -> int | None:
    return find_first_difference(flash.generate().tolist(), original.generate().tolist())
