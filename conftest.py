"""Loads the performance suite's plugins: options, machine information, journal and terminal output.

``pytest-benchmark compare`` imports this file too (and asks it for its scale-unit and group-stats hooks,
which are left to pytest-benchmark), so nothing here may import torch, and no group-stats hook may be defined
that could return ``None``.
"""

pytest_plugins = (
    "perf_tests.options",
    "perf_tests.machine",
    "perf_tests.limits",
    "perf_tests.journal",
    "perf_tests.counters_only",
    "perf_tests.terminal",
    "perf_tests.regression.plugin",
)
