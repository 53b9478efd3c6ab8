"""pytest plugin for the tests' own runs of the suite: the smallest checkpoint in miniature, under its usual name."""

from perf_tests import cases

TINY = cases.CHECKPOINTS["tiny.en"]
cases.CHECKPOINTS["tiny.en"] = TINY._replace(d_model=32, heads=2, ffn=64, encoder_layers=1)
