"""Fixtures of the cases. Torch is imported inside of them, so that collection stays fast."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from .audio import go_offline_unless_reachable, load_speech
from .cases import SETTINGS, Case
from .options import PLAN, is_perf_item
from .plan import BadInputError, Plan
from .terminal import PROGRESS, SPEECH

if TYPE_CHECKING:
    from .procedure import Procedure, Workspace
    from .subject import Place, Stage


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One item per case of the plan, its parameters the case's four fields."""
    if {*Case._fields} <= {*metafunc.fixturenames}:
        chosen = metafunc.config.stash[PLAN].cases
        metafunc.parametrize(Case._fields, chosen, ids=[case.id for case in chosen])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Get the speech once, before the header that names it and before any case could fail for want of it."""
    config = session.config
    chosen = [item for item in session.items if is_perf_item(item)]
    if not chosen or config.option.collectonly:
        return
    plan = config.stash[PLAN]
    settings = {str(item.callspec.params["setting"]) for item in chosen if isinstance(item, pytest.Function)}
    count = max(SETTINGS[setting].batch_size for setting in settings)
    if plan.weights == "pretrained":
        go_offline_unless_reachable()  # before the Hub's client is imported, which reads the switch then
    try:
        config.stash[SPEECH] = load_speech(plan.dataset, count)
    except BadInputError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.fixture(scope="session")
def plan(pytestconfig: pytest.Config) -> Plan:
    """What the options ask for."""
    return pytestconfig.stash[PLAN]


@pytest.fixture(scope="session")
def place(plan: Plan) -> "Iterator[Place]":
    """Device and dtype; Transformers' own messages and bars are off while cases run: they would be timed."""
    import torch
    from transformers.utils import logging

    from .subject import Place

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
    from .counting import Counting
    from .procedure import Procedure

    kind = Counting if plan.counters_only else Procedure
    return kind(plan, pytestconfig.stash[SPEECH], pytestconfig.stash[PROGRESS])


@pytest.fixture
def case(checkpoint: str, decoder_layers: int, setting: str, implementation: str) -> Case:
    """The case at hand."""
    return Case(checkpoint, decoder_layers, setting, implementation)


@pytest.fixture(scope="session")
def workspaces() -> "dict[str, Workspace]":
    """The workspace of the cell at hand, by the cell's id: cases come cell by cell, so one is kept."""
    return {}


@pytest.fixture
def workspace(
    case: Case, plan: Plan, place: "Place", procedure: "Procedure", workspaces: "dict[str, Workspace]"
) -> "Workspace":
    """What the cases of a cell share."""
    from .procedure import Workspace

    if case.cell.id not in workspaces:
        workspaces.clear()
        workspaces[case.cell.id] = Workspace(case.cell, plan, procedure.speech, place)
    return workspaces[case.cell.id]


@pytest.fixture
def stage(workspace: "Workspace") -> "Iterator[Stage]":
    """Where the case's models stand; all of their memory is free again when it ends."""
    import sys

    from .subject import clear_frames

    stage = workspace.stage()
    yield stage
    # pytest keeps the last error, and its frames keep what they had in hand.
    last: Any = getattr(sys, "last_value", None)
    clear_frames(last)
    stage.clear()
