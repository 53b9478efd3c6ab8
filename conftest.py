"""Loads the performance suite's plugins: options, machine information, journal, locks, terminal.

``pytest-benchmark compare`` imports this file too (and asks it for its scale-unit and group-stats hooks,
which are left to pytest-benchmark), so nothing here may import torch, and no group-stats hook may be defined
that could return ``None``.
"""

# A plugin comes after those that it imports from (pytest rewrites the asserts of what is not imported yet), and pytest
# asks the last one first: the lock is taken, then the disks are looked at, then the journal is opened.
pytest_plugins = (
    "perf_tests.matrix.options",
    "perf_tests.machine.describe",
    "perf_tests.session.limits",
    "perf_tests.session.outcomes",
    "perf_tests.session.terminal",
    "perf_tests.session.timeouts",
    "perf_tests.session.resume",
    "perf_tests.session.saving",
    "perf_tests.session.locks",
    "perf_tests.gate.fail_on",
)
