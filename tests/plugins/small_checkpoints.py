"""pytest plugin for the tests' own runs of the suite: the smallest checkpoint in miniature, under its usual name.

A case of it takes no longer than the collections of garbage around it, so these leave out what was imported.
"""

import gc

from perf_tests.matrix import cases

TINY = cases.CHECKPOINTS["tiny.en"]
cases.CHECKPOINTS["tiny.en"] = TINY._replace(d_model=32, heads=2, ffn=64, encoder_layers=1)


def pytest_runtestloop() -> None:
    """All is imported by now."""
    gc.freeze()
