"""Fixtures of the cases. Torch is imported inside of them, so that collection stays fast."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from perf_tests.matrix.cases import Case
from perf_tests.matrix.components import COMPONENTS, WORKS, why_unavailable
from perf_tests.matrix.options import PLAN
from perf_tests.matrix.plan import Plan
from perf_tests.session.speech import SPEECH
from perf_tests.session.terminal import PROGRESS

from .plugin import LIMITS

if TYPE_CHECKING:
    from perf_tests.machine.place import Place
    from perf_tests.measure.procedure import Procedure
    from perf_tests.measure.time import Benchmark
    from perf_tests.subjects.subject import Stage
    from perf_tests.subjects.workspace import Workspace


@pytest.fixture(scope="session")
def plan(pytestconfig: pytest.Config) -> Plan:
    """What the options ask for."""
    return pytestconfig.stash[PLAN]


@pytest.fixture(scope="session")
def place(plan: Plan) -> "Iterator[Place]":
    """Device and dtype; Transformers' own messages and bars are off while cases run: they would be timed."""
    import torch
    from transformers.utils import logging

    from perf_tests.machine.place import Place

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield Place(torch.device(plan.device), getattr(torch, plan.dtype))
    logging.set_verbosity(verbosity)
    if bars:
        logging.enable_progress_bar()


@pytest.fixture(scope="session")
def procedure(plan: Plan, pytestconfig: pytest.Config) -> "Procedure":
    """The passes that every case goes through."""
    from perf_tests.measure.counting import Counting
    from perf_tests.measure.procedure import Procedure

    kind = Counting if plan.counters_only else Procedure
    return kind(plan, pytestconfig.stash[SPEECH], pytestconfig.stash[PROGRESS])


@pytest.fixture
def case(plan: Plan, checkpoint: str, decoder_layers: int, setting: str, implementation: str) -> Case:
    """The case at hand; skipped where its implementation cannot run here."""
    reason = why_unavailable(implementation, plan.device, plan.dtype)
    if reason is not None:
        pytest.skip(reason)
    return Case(checkpoint, decoder_layers, setting, implementation)


@pytest.fixture(scope="session")
def workspaces() -> "dict[str, Workspace]":
    """The workspace of the cell at hand, by the cell's id: cases come cell by cell, so one is kept."""
    return {}


@pytest.fixture(scope="session")
def limits(place: "Place", pytestconfig: pytest.Config) -> dict[str, Any]:
    """What this machine can do at most; measured where a component first asks, and saved with the run."""
    from perf_tests.machine.limits import measure_limits

    pytestconfig.stash[LIMITS] = measure_limits(place)
    return pytestconfig.stash[LIMITS]


@pytest.fixture
def workspace(
    case: Case,
    plan: Plan,
    place: "Place",
    procedure: "Procedure",
    workspaces: "dict[str, Workspace]",
    request: pytest.FixtureRequest,
) -> "Workspace":
    """What the cases of a cell share, and what of the last cell serves this one too: weights, features."""
    from perf_tests.subjects.workspace import make_workspace

    if case.cell.id not in workspaces:
        last = next(iter(workspaces.values()), None)
        workspaces.clear()
        if case.setting in WORKS:
            from perf_tests.subjects.components.workspace import ComponentWorkspace

            limits = request.getfixturevalue("limits") if case.setting in COMPONENTS.settings else None
            new: Workspace = ComponentWorkspace(case.cell, plan, procedure.speech, place, last, limits)
        else:
            new = make_workspace(case.cell, plan, procedure.speech, place, last)
        workspaces[case.cell.id] = new
    return workspaces[case.cell.id]


@pytest.fixture
def stage(workspace: "Workspace") -> "Iterator[Stage]":
    """Where the case's models stand; all of their memory is free again when it ends."""
    import sys

    from perf_tests.subjects.subject import clear_frames

    stage = workspace.stage()
    yield stage
    # pytest keeps the last error, and its frames keep what they had in hand.
    last: Any = getattr(sys, "last_value", None)
    clear_frames(last)
    stage.clear()


@pytest.fixture
def measure(
    case: Case, workspace: "Workspace", stage: "Stage", procedure: "Procedure", benchmark: "Benchmark"
) -> Callable[[], None]:
    """What a test calls: all passes over its case."""
    return partial(procedure.measure, case, workspace, stage, benchmark)
