"""Models that move on in memory while they are timed, so that a run is of many places, not of one.

Where a model's weights and buffers lie makes all of its rounds longer or shorter, of the control, the yardstick and
flash each, as long as they lie there. Nothing that runs beside them corrects that.
"""

from perf_tests.subjects.subject import SHORT, Stage, Subject

from .yardstick import Yardstick

# That are timed before the models move on. Moving takes 0.4 times as long as a pair; where pairs differ by 4 % and
# places by 1 to 2 %, one to three pairs each tell most in a given time.
PAIRS_PER_PLACE = 2


def move_models(stage: Stage, flash: Subject, control: Subject, yardstick: Yardstick | None) -> None:
    """Build everything anew, and have it ready for a round."""
    stage.rebuild(flash)
    stage.rebuild(control)
    if yardstick is not None:
        yardstick.rebuild()
    # It packs its weights when it is first called. The others have nothing to prepare.
    flash.generate(**SHORT)


def stay() -> None:
    """In place of that: models that do not move."""
