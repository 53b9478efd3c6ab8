"""pytest plugin for the tests' own runs of the suite: makes cases fail in the ways that `PERF_BREAK` lists.

`parity` and `nan` break flash's logits, `tokens` its tokens, `raise` makes the eager model's memory pass raise,
`skip` skips the original, `late` lets flash fail after it was timed, `teardown` while it is taken down.
"""

import os

import pytest
import torch

from perf_tests import parity, procedure
from perf_tests.subject import Stage, Subject

BREAK = frozenset(os.environ.get("PERF_BREAK", "").split(","))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    if "skip" in BREAK and "original" in item.name:
        pytest.skip("no such thing here")


def break_logits(force, change):
    def forced(subject: Subject, *args: object) -> torch.Tensor:
        logits = force(subject, *args)
        return change(logits) if subject.implementation == "flash" else logits

    return forced


if "parity" in BREAK:
    parity.force = break_logits(parity.force, lambda logits: logits + 0.01)
if "nan" in BREAK:
    parity.force = break_logits(parity.force, lambda logits: logits * torch.nan)

generate = Subject.generate
if "tokens" in BREAK:
    Subject.generate = lambda self: generate(self) + (self.implementation == "flash")

record_memory = procedure.record_memory
if "raise" in BREAK:

    def record_or_raise(subject: Subject) -> dict[str, object]:
        if subject.implementation == "eager":
            raise MemoryError("this model is too large\nfor this test")
        return record_memory(subject)

    procedure.record_memory = record_or_raise

estimate_speedup = procedure.estimate_speedup
if "late" in BREAK:

    def estimate_or_raise(*args: object) -> object:
        raise ArithmeticError("too late")

    procedure.estimate_speedup = estimate_or_raise

clear = Stage.clear
if "teardown" in BREAK:

    def clear_or_raise(self: Stage) -> None:
        broken = any(subject.implementation == "flash" for subject in self._subjects)
        clear(self)
        if broken:
            raise OSError("will not go")

    Stage.clear = clear_or_raise
