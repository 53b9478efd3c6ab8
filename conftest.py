"""Loads the performance suite's plugin.

``pytest-benchmark compare`` imports this file too (and asks it for its scale-unit and group-stats hooks,
which are left to pytest-benchmark), so nothing here may import torch, and no group-stats hook may be defined
that could return ``None``.
"""

pytest_plugins = ("perf_tests.plugin",)
