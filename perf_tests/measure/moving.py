"""Models that move on in memory while they are timed, so that a run is of many places, not of one.

Where a model's weights and buffers lie makes all of its rounds longer or shorter, of the control, the yardstick and
flash each, as long as they lie there. Nothing that runs beside them corrects that.
"""

from perf_tests.matrix.plan import PAIRS_PER_PLACE
from perf_tests.subjects.subject import SHORT, Stage, Subject

from .yardstick import Yardstick


def move_models(stage: Stage, flash: Subject, control: Subject, yardstick: Yardstick | None, done: int) -> None:
    """Where ``done`` pairs are as many as one place is for: build everything anew, and have it ready for a round."""
    if done % PAIRS_PER_PLACE:
        return
    stage.rebuild(flash)
    stage.rebuild(control)
    if yardstick is not None:
        yardstick.rebuild()
    # It packs its weights when it is first called. The others have nothing to prepare.
    flash.generate(**SHORT)


def stay(done: int) -> None:
    """In place of that: models that do not move."""
