"""What the cases of one cell share."""

from typing import Any

import torch

from perf_tests.machine.place import Place
from perf_tests.matrix.cases import CHECKPOINTS, Cell
from perf_tests.matrix.components import setting_of
from perf_tests.matrix.floors import Floor
from perf_tests.matrix.plan import Plan
from perf_tests.runs.schema import COMPONENT_KEYS

from .audio import Speech
from .parity import Reference, check_parity, make_reference, read_outputs
from .subject import Stage, Subject, make_empty_features, make_features
from .weights import ZEROS, Weights

CONTROL = "original"


class Workspace:
    """What the cases of one cell share on the host: weights, features, and the reference for parity.

    ``input`` tells what the features are of, so that the next cell can take them if its are the same; ``None`` where
    none can.
    """

    def __init__(
        self, cell: Cell, place: Place, weights: Weights, features: torch.Tensor, input: object | None = None
    ) -> None:
        self.cell = cell
        self.place = place
        self.weights = weights
        self.features = features
        self.input = input
        self._reference: Reference | None = None

    def stage(self) -> Stage:
        """A stage for one case."""
        return Stage(self.cell, self.weights, self.features, self.place)

    def check_parity(self, subject: Subject, stage: Stage, output: Any = None) -> dict[str, Any]:
        """Compare a subject with the cell's reference; the record for the key ``parity``.

        ``output`` is what a round of ``subject`` has computed already: the tokens. The reference is made at first need,
        after the memory pass, which wants the device alone; where that is the original's case, from its outputs.
        """
        outputs = read_outputs(subject, stage, output)
        if self._reference is None:
            self._reference = make_reference(stage, outputs if subject.implementation == CONTROL else None)
        return check_parity(subject.implementation, outputs, self._reference, stage)

    def floor(self, subject: Subject) -> Floor | None:
        """The least time that a round can take on this machine; known of components alone."""
        return None

    def findings(self, subject: Subject, seconds: list[float]) -> dict[str, Any]:
        """What components record beyond that: nothing of this here."""
        return dict.fromkeys(COMPONENT_KEYS)


def make_workspace(cell: Cell, plan: Plan, speech: Speech, place: Place, last: Workspace | None) -> Workspace:
    """The workspace of one of ``generate``'s cells; what it has in common with the ``last`` one is made once."""
    uses_zeros = plan.counters_only and not plan.on_cuda and plan.weights == "random"
    weights = Weights(cell, ZEROS if uses_zeros else plan.weights, last.weights if last else None)
    computes = plan.computes(cell.setting) or plan.weights != "random"
    input = CHECKPOINTS[cell.checkpoint].mel_bins, setting_of(cell.setting).batch_size, computes
    if last is not None and last.input == input:
        return Workspace(cell, place, weights, last.features, input)
    features = make_features(cell, speech) if computes else make_empty_features(cell)
    return Workspace(cell, place, weights, features, input)
