"""What the cases of a component's cell share, and what they record against the machine's limits."""

from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from perf_tests.machine.place import Place
from perf_tests.matrix.cases import CHECKPOINTS, WINDOW_SECONDS, Cell
from perf_tests.matrix.components import WORKS
from perf_tests.matrix.floors import Floor, floor_of
from perf_tests.matrix.plan import Plan
from perf_tests.runs.schema import COMPONENT_KEYS
from perf_tests.subjects.audio import SAMPLING_RATE, Speech
from perf_tests.subjects.subject import Stage, Subject, make_features
from perf_tests.subjects.weights import Weights
from perf_tests.subjects.workspace import Workspace

from .attention import Attention
from .component import Component
from .decoder import DecodeStep, Prefill
from .encoder import Encoder
from .generation import LongForm, Transcription
from .loading import Load
from .parity import OutputReference, check_outputs, make_output_reference
from .training import TrainingStep

KINDS: dict[str, type[Component]] = {
    "test_encoder": Encoder,
    "test_prefill": Prefill,
    "test_decode_step": DecodeStep,
    "test_attention": Attention,
    "test_training_step": TrainingStep,
    "test_load": Load,
    "test_long_form": LongForm,
    "test_accuracy": Transcription,
}


class ComponentWorkspace(Workspace):
    """Weights, input, the outputs that parity compares with, and the machine's limits where there is a floor."""

    def __init__(
        self,
        cell: Cell,
        plan: Plan,
        speech: Speech,
        place: Place,
        last: Workspace | None,
        limits: dict[str, Any] | None,
    ) -> None:
        weights = Weights(cell, plan.weights, last.weights if last else None)
        super().__init__(cell, place, weights, make_input(cell, speech))
        self.limits = limits
        self._speech = speech
        self._outputs: OutputReference | None = None

    def stage(self) -> Stage:
        """A stage for one case."""
        kind = partial(KINDS[WORKS[self.cell.setting].test], cell=self.cell, speech=self._speech)
        return Stage(self.cell, self.weights, self.features, self.place, kind)

    def check_parity(self, subject: Subject, stage: Stage, output: Any = None) -> dict[str, Any]:
        """Compare what a subject gives, part by part, with the original's; ``output`` has no parts."""
        assert isinstance(subject, Component)
        if self._outputs is None:
            self._outputs = make_output_reference(stage)
        return check_outputs(subject, self._outputs)

    def floor(self, subject: Subject) -> Floor | None:
        """The floor at this machine's limits, where the work has one."""
        assert isinstance(subject, Component)
        phases = subject.phases()
        if not phases or self.limits is None:
            return None
        throughput = self.limits["flops_per_second"][str(self.place.dtype).removeprefix("torch.")]
        return floor_of(phases, self.limits["memory_bytes_per_second"], throughput)

    def findings(self, subject: Subject, seconds: list[float]) -> dict[str, Any]:
        """The floor, how near the median round comes to it, and the work's own findings."""
        assert isinstance(subject, Component)
        record = dict.fromkeys(COMPONENT_KEYS) | subject.findings()
        floor = self.floor(subject)
        if floor is None:
            return record
        fraction = floor.seconds / median(seconds) if seconds else None
        return record | {
            "limit_bytes": floor.bytes,
            "limit_flops": floor.flops,
            "floor_seconds": floor.seconds,
            "fraction_of_limit": fraction,
        }


def make_input(cell: Cell, speech: Speech) -> torch.Tensor:
    """Log-mel features for the cell's work, (batch, mel bins, frames) in float32 on the host.

    Where the work takes no audio, (batch, 0). Long-form audio is the clips one after the other, again from the first
    until it is long enough. A transcription takes each clip once, up to its batch.
    """
    work = WORKS[cell.setting]
    if not work.seconds:
        return torch.empty(work.batch_size, 0)
    features = make_features(cell, speech)
    if work.test == "test_accuracy":
        return features[: len(speech.clips)]
    if work.seconds <= WINDOW_SECONDS:
        return features
    samples = np.resize(np.concatenate(speech.clips), work.seconds * SAMPLING_RATE)
    extractor = WhisperFeatureExtractor(feature_size=CHECKPOINTS[cell.checkpoint].mel_bins)
    long = extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="np", truncation=False)["input_features"]
    return torch.from_numpy(np.ascontiguousarray(long, dtype=np.float32))
