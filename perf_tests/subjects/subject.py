"""A model under test with its input: what a round does, and what parity asks of it."""

import gc
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from perf_tests.machine.place import Place
from perf_tests.matrix.cases import CHECKPOINTS, MEL_FRAMES, Cell
from perf_tests.matrix.components import chooses_plain_text, setting_of
from perf_tests.matrix.vocabulary import vocabulary_of

from .audio import SAMPLING_RATE, Speech
from .weights import Weights

FEATURES_VERSION = 1
# Arguments of a short round, to warm up.
SHORT = {"min_new_tokens": 2, "max_new_tokens": 2}


class Subject:
    """One implementation of one cell, on its device, with the cell's features beside it.

    A round is one ``compute``: here ``generate``, in ``components`` a part of the model.
    """

    def __init__(
        self,
        implementation: str,
        model: WhisperForConditionalGeneration,
        features: torch.Tensor,
        arguments: Mapping[str, Any],
        place: Place,
    ) -> None:
        self.implementation = implementation
        self.model = model
        self.features = features
        self.arguments = arguments
        self.place = place

    def generate(self, **other: Any) -> torch.Tensor:
        """Generate from the whole batch; return the new tokens, (batch, new tokens), int64 on the device.

        ``other`` arguments take the place of the subject's own.
        """
        tokens: torch.Tensor = self.model.generate(self.features, **{**self.arguments, **other})
        return tokens

    def compute(self) -> Any:
        """What a round does."""
        return self.generate()

    def run_round(self) -> None:
        """What is timed: one ``compute``, and the wait for it. Returns nothing, so no result stays alive."""
        self.compute()
        self.place.synchronize()

    def attention_backend(self) -> dict[str, str]:
        """Which kernel served which kind of call."""
        backend = getattr(self.model, "attention_backend", None)
        if isinstance(backend, Mapping):
            return {str(call): str(kernel) for call, kernel in backend.items()}
        kernel = str(self.model.config._attn_implementation)
        return {"encoder": kernel, "decode": kernel}

    @property
    def keeps_buffers(self) -> bool:
        """Whether a round leaves memory behind for the next one of its length: the buffers of captured decoding."""
        return hasattr(self.model, "uncaptured")

    def uncaptured(self) -> AbstractContextManager[None]:
        """A context in which a round runs operator by operator: a replayed CUDA graph dispatches none."""
        return getattr(self.model, "uncaptured", nullcontext)()

    def release(self) -> None:
        """Let go of everything that takes memory, whoever holds the subject; of a model that is there, or was to be."""
        for name in ("model", "features"):
            vars(self).pop(name, None)


class Stage:
    """Builds the subjects of one cell and lets go of them, so that a case leaves no memory in use."""

    def __init__(
        self,
        cell: Cell,
        weights: Weights,
        features: torch.Tensor,
        place: Place,
        kind: Callable[..., Subject] = Subject,
    ) -> None:
        self.cell = cell
        self.place = place
        self.vocabulary = vocabulary_of(CHECKPOINTS[cell.checkpoint].vocab_size)
        self._weights = weights
        self._features = features
        self._kind = kind
        self._subjects: list[Subject] = []

    @property
    def arguments(self) -> dict[str, Any]:
        """What every subject hands to ``generate``."""
        setting = self.cell.setting
        plain_text = chooses_plain_text(setting, self._weights.kind)
        return self.vocabulary.generate_arguments(setting_of(setting).new_tokens, plain_text=plain_text)

    def build(self, implementation: str, dtype: torch.dtype | None = None) -> Subject:
        """Put ``implementation`` on the device, in the session's dtype or in another."""
        place = self.place._replace(dtype=dtype or self.place.dtype)
        model = self._weights.build(implementation, place.device, place.dtype)
        features = self._features.to(place.device, place.dtype)
        subject = self._kind(implementation, model, features, self.arguments, place)
        self._subjects.append(subject)
        return subject

    def rebuild(self, subject: Subject) -> None:
        """Build the model of ``subject`` once more, elsewhere in memory, when the one that it has is gone."""
        del subject.model
        subject.model = self._weights.build(subject.implementation, subject.place.device, subject.place.dtype)

    @contextmanager
    def borrow(self, implementation: str, dtype: torch.dtype | None = None) -> Iterator[Subject]:
        """A subject for the length of a ``with`` block."""
        subject = self.build(implementation, dtype)
        try:
            yield subject
        finally:
            self._subjects.remove(subject)
            subject.release()
            collect_garbage(self.place)

    def clear(self) -> None:
        """Drop every subject's model and features, whoever holds the subject, and give the memory back."""
        for subject in self._subjects:
            subject.release()
        self._subjects.clear()
        collect_garbage(self.place)


def collect_garbage(place: Place) -> None:
    """Free unreachable tensors and return the allocator's cached blocks to the device."""
    gc.collect()
    if place.device.type == "cuda":
        torch.cuda.empty_cache()


def clear_frames(error: BaseException | None) -> None:
    """Clear the frames of ``error`` and of the errors behind it: their local variables may hold a model.

    A frame whose ``f_locals`` somebody has looked at, as pytest does, keeps them in a dict besides (until Python 3.12),
    which a second look brings up to date.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        for frame, _ in traceback.walk_tb(error.__traceback__):
            frame.f_locals  # noqa: B018
        error = error.__cause__ or error.__context__


def make_empty_features(cell: Cell) -> torch.Tensor:
    """Zeros in place of the features, for rounds that are not computed."""
    return torch.zeros(setting_of(cell.setting).batch_size, CHECKPOINTS[cell.checkpoint].mel_bins, MEL_FRAMES)


def make_features(cell: Cell, speech: Speech) -> torch.Tensor:
    """Log-mel features of the cell's batch, (batch, mel bins, 3000) in float32 on the host.

    A batch larger than the number of clips takes the clips again from the first.
    """
    batch_size = setting_of(cell.setting).batch_size
    extractor = WhisperFeatureExtractor(feature_size=CHECKPOINTS[cell.checkpoint].mel_bins)
    clips = speech.clips[:batch_size]
    features = extractor(clips, sampling_rate=SAMPLING_RATE, return_tensors="np")["input_features"]
    repeated = np.resize(features, (batch_size, *features.shape[1:]))
    return torch.from_numpy(np.ascontiguousarray(repeated, dtype=np.float32))
