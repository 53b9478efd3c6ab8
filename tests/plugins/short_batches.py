"""pytest plugin for the tests' own runs of the suite: the setting `batched` in few tokens, under its usual name."""

from perf_tests.matrix import cases

cases.SETTINGS["batched"] = cases.SETTINGS["batched"]._replace(new_tokens=12)
