"""The rows that this model has to win on a CPU, each with its bar. Imports no torch."""

from typing import NamedTuple


class Work(NamedTuple):
    """What is done: so many tokens of so many clips, by a checkpoint with so many decoder layers.

    ``part`` is ``generate`` for the whole of it, or ``decode`` where the encoder's outputs are given.
    """

    checkpoint: str
    decoder_layers: int
    batch_size: int
    new_tokens: int
    part: str = "generate"

    @property
    def name(self) -> str:
        """The work in words."""
        size = f"batch {self.batch_size}, {self.new_tokens} tokens"
        return f"{self.checkpoint}-{self.decoder_layers}, {size}{', decoding alone' if self.part == 'decode' else ''}"


class Row(NamedTuple):
    """One row: the ratio flash / original of ``metric`` must not exceed ``bar``; ``aim`` is what is hoped for."""

    metric: str
    work: Work
    dtype: str
    bar: float
    aim: float | None = None
    rounds: int = 20

    @property
    def name(self) -> str:
        """The row in words."""
        return f"{self.metric}: {self.work.name}, {self.dtype}"


TINY = Work("tiny.en", 4, 1, 25)
SHALLOW = Work("tiny.en", 2, 1, 25)
BASE = Work("base.en", 6, 1, 25)
SMALL_BATCH = Work("tiny.en", 4, 4, 64)
BATCH = Work("tiny.en", 4, 16, 64)

# Units of the metrics; each is smaller where it is better.
METRICS = {"time": "seconds", "memory": "bytes", "operators": "ATen operators per token"}

ROWS = (
    Row("time", TINY, "float32", 0.66, 0.50),
    Row("time", TINY, "bfloat16", 0.60, 0.50),
    Row("time", BASE, "float32", 0.66, 0.50),
    Row("time", BASE, "bfloat16", 0.65, 0.50),
    Row("time", TINY._replace(part="decode"), "float32", 0.55),
    Row("time", TINY._replace(part="decode"), "bfloat16", 0.45),
    Row("time", BATCH._replace(part="decode"), "float32", 0.75, rounds=8),
    Row("time", BATCH._replace(part="decode"), "bfloat16", 0.45, rounds=8),
    # The rest of the quick preset must not be slower.
    Row("time", SHALLOW, "float32", 1.0),
    Row("time", SMALL_BATCH, "float32", 1.0, rounds=8),
    Row("memory", TINY, "float32", 1.0),
    Row("memory", TINY, "bfloat16", 1.0),
    Row("memory", SHALLOW, "float32", 1.0),
    Row("memory", BASE, "float32", 1.0),
    Row("memory", BASE, "bfloat16", 1.0),
    Row("memory", SMALL_BATCH, "float32", 1.0),
    Row("memory", BATCH, "float32", 0.8),
    Row("memory", BATCH, "bfloat16", 0.8),
    Row("operators", TINY, "float32", 0.5),
)
