"""What the sections of one machine are about."""

from collections.abc import Sequence
from typing import NamedTuple

from perf_tests.runs.views import RunView

from .gathering import Machine
from .rows import Row, implementations_of, rows_of


class Subject(NamedTuple):
    """A machine, its shown run's cells, and how to address commits on the web (``None``: not at all)."""

    machine: Machine
    rows: Sequence[Row]
    implementations: Sequence[str]
    commit_template: str | None

    @property
    def run(self) -> RunView:
        """The run whose figures are shown."""
        return self.machine.shown


def make_subject(machine: Machine, commit_template: str | None) -> Subject:
    """Arrange the cells of the machine's shown run."""
    rows = rows_of(machine.shown)
    return Subject(machine, rows, implementations_of(rows), commit_template)
