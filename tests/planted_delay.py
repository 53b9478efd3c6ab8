"""pytest plugin for `gate_power.py`: flash is slower by `$PERF_PLANTED_DELAY` of its own time, in real runs."""

import os
import time

from perf_tests.subject import Subject

SHARE = float(os.environ["PERF_PLANTED_DELAY"])
_run_round = Subject.run_round


def run_round_and_wait(self: Subject) -> None:
    """The round, then a wait that is a share of it, as busy as the round was."""
    start = time.perf_counter()
    _run_round(self)
    if self.implementation == "flash":
        end = time.perf_counter()
        until = end + SHARE * (end - start)
        while time.perf_counter() < until:
            pass


Subject.run_round = run_round_and_wait  # type: ignore[method-assign]
