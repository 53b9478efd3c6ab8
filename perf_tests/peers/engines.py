"""The engines: this model, the original, and their peers, each loaded in the process that calls it.

How each is made to generate exactly ``new_tokens`` tokens, greedily, from the same log-mel features:

- Transformers' class and this project's: ``min_new_tokens = max_new_tokens``, as everywhere in the suite.
- faster-whisper: its model's encoder, then the call of CTranslate2 that its ``transcribe`` makes, with
  ``beam_size=1`` and the end-of-text token in ``suppress_tokens``. CTranslate2 stops after half of
  ``max_length`` tokens (the other half is meant for the prompt), hence ``max_length = 2 * new_tokens``.
- openai-whisper: ``whisper.decode`` with the end-of-text token in ``suppress_tokens`` and ``sample_len``.

Without force each stops at the end-of-text token, or after ``LONGEST`` tokens.
Nothing here imports torch or a peer before an engine is loaded.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from perf_tests.common.text import first_line
from perf_tests.machine.describe import version_of
from perf_tests.matrix.cases import CHECKPOINTS, Cell
from perf_tests.matrix.vocabulary import Vocabulary, vocabulary_of

LONGEST = 100
EXTRA = "pip install 'whisper-flash-attention[peers]'"

# Generates from one clip, by its number; forced to the job's length or not. Returns text and timestamp tokens.
Round = Callable[[int, bool], list[int]]


class PeerError(RuntimeError):
    """An engine that cannot take part; the message is the reason, one line."""


class Job(NamedTuple):
    """What the engines work on. ``folder`` has the features and, once converted, CTranslate2's model."""

    cell: Cell
    weights: str
    new_tokens: int
    threads: int
    folder: Path

    @property
    def features(self) -> Path:
        """A NumPy file, (clips, mel bins, 3000) in float32."""
        return self.folder / "features.npy"

    @property
    def ctranslate2(self) -> Path:
        """The folder that faster-whisper loads."""
        return self.folder / "ctranslate2"

    @property
    def vocabulary(self) -> Vocabulary:
        return vocabulary_of(CHECKPOINTS[self.cell.checkpoint].vocab_size)

    def suppressed(self, forced: bool) -> list[int]:
        """``suppress_tokens`` of the peers: -1 is the usual list; the end of the text where it must not come."""
        return [-1, self.vocabulary.end_of_text] if forced else [-1]


class Engine(Protocol):
    """Something that generates."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    @property
    def dtype(self) -> str:
        """The precision it computes in."""

    @property
    def version(self) -> str | None:
        """The installed version of what it comes from."""

    def load(self, job: Job) -> Round:
        """Load the weights of ``job``; return what runs a round."""


@dataclass(frozen=True)
class TransformersEngine:
    """An implementation of the suite: ``original`` or ``flash``."""

    name: str
    dtype: str

    @property
    def version(self) -> str | None:
        """Transformers' version: the original is its class, and flash is built upon it."""
        return version_of("transformers")

    def load(self, job: Job) -> Round:
        import numpy as np
        import torch

        from perf_tests.matrix.plan import cpu_computes
        from perf_tests.subjects.weights import Weights

        quieten_transformers()
        torch.set_num_threads(job.threads)
        if self.dtype != "float32" and not cpu_computes(self.dtype):
            raise PeerError(f"this CPU (or its torch) cannot compute in {self.dtype}")
        dtype = getattr(torch, self.dtype)
        model = Weights(job.cell, job.weights).build(self.name, torch.device("cpu"), dtype)
        features = torch.from_numpy(np.load(job.features)).to(dtype)
        forced_arguments = job.vocabulary.generate_arguments(job.new_tokens)
        free_arguments = job.vocabulary.generate_arguments(LONGEST) | {"min_new_tokens": None}

        def run_round(clip: int, forced: bool) -> list[int]:
            arguments = forced_arguments if forced else free_arguments
            tokens: list[int] = model.generate(features[clip : clip + 1], **arguments)[0].tolist()
            return [token for token in tokens if token != job.vocabulary.end_of_text]

        return run_round


@dataclass(frozen=True)
class FasterWhisperEngine:
    """faster-whisper, which runs on CTranslate2; ``dtype`` is its ``compute_type``."""

    dtype: str
    name: str = "faster-whisper"

    @property
    def version(self) -> str | None:
        """Its own version and CTranslate2's."""
        own, ctranslate2 = version_of("faster-whisper"), version_of("ctranslate2")
        return f"{own}, CTranslate2 {ctranslate2}" if own else None

    def load(self, job: Job) -> Round:
        # CTranslate2 imports torch where it is installed, for conversion only: keep torch's threads out of here.
        blocked: Any = {"torch": None}
        sys.modules.update(blocked)
        faster_whisper = import_peer("faster_whisper", "faster-whisper")
        import numpy as np

        model = faster_whisper.WhisperModel(
            str(job.ctranslate2),
            device="cpu",
            compute_type=self.dtype,
            cpu_threads=job.threads,
            local_files_only=True,
        )
        features = np.load(job.features)

        def run_round(clip: int, forced: bool) -> list[int]:
            result = model.model.generate(
                model.encode(features[clip]),
                [list(job.vocabulary.prompt)],
                beam_size=1,
                max_length=2 * (job.new_tokens if forced else LONGEST),
                suppress_blank=True,
                suppress_tokens=job.suppressed(forced),
            )
            tokens: list[int] = result[0].sequences_ids[0]
            return tokens

        return run_round


@dataclass(frozen=True)
class OpenaiWhisperEngine:
    """openai-whisper, in float32."""

    name: str = "openai-whisper"
    dtype: str = "float32"

    @property
    def version(self) -> str | None:
        return version_of("openai-whisper")

    def load(self, job: Job) -> Round:
        whisper = import_peer("whisper", "openai-whisper")
        import numpy as np
        import torch

        quieten_transformers()
        torch.set_num_threads(job.threads)
        model = build_openai_model(whisper, job.cell, job.weights)
        features = torch.from_numpy(np.load(job.features))

        def run_round(clip: int, forced: bool) -> list[int]:
            options = whisper.DecodingOptions(
                language="en",
                without_timestamps=True,
                fp16=False,
                sample_len=job.new_tokens if forced else LONGEST,
                suppress_tokens=job.suppressed(forced),
            )
            tokens: list[int] = whisper.decode(model, features[clip], options).tokens
            return tokens

        return run_round


def build_openai_model(whisper: Any, cell: Cell, weights: str) -> Any:
    """openai-whisper's model, in evaluation mode, with the weights of ``cell``."""
    import torch

    from perf_tests.subjects.weights import Weights

    from .convert import openai_dimensions, openai_state_dict

    source = Weights(cell, weights).build("original", torch.device("cpu"), torch.float32)
    model = whisper.model.Whisper(whisper.model.ModelDimensions(**openai_dimensions(source.config)))
    model.load_state_dict(openai_state_dict(source.state_dict()))
    return model.eval()


def quieten_transformers() -> None:
    """No messages and no bars of Transformers in this process."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def import_peer(module: str, distribution: str) -> Any:
    """Import a peer.

    Raises:
        PeerError: it is not installed, or it does not import.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise PeerError(f"{distribution} is not installed ({EXTRA})") from None
        raise PeerError(f"{distribution} cannot be imported: {first_line(error)}") from None
    except Exception as error:  # whatever goes wrong in another's package is a reason, not an error
        raise PeerError(f"{distribution} cannot be imported: {first_line(error)}") from None


# Each with the engine that its seconds are compared with.
CONTROLS = {dtype: TransformersEngine("original", dtype) for dtype in ("float32", "bfloat16")}
CONTENDERS: tuple[tuple[str, tuple[Engine, ...]], ...] = (
    (
        "float32",
        (
            TransformersEngine("flash", "float32"),
            FasterWhisperEngine("float32"),
            FasterWhisperEngine("int8"),
            OpenaiWhisperEngine(),
        ),
    ),
    ("bfloat16", (TransformersEngine("flash", "bfloat16"), FasterWhisperEngine("int8"))),
)
