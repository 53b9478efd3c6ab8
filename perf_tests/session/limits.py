"""pytest plugin: the machine's limits in the run's ``machine_info``, where they were measured. Imports no torch."""

from typing import Any

import pytest

LIMITS = pytest.StashKey[dict[str, Any]]()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add them. They are no part of the fingerprint: they vary from session to session."""
    machine_info["limits"] = config.stash.get(LIMITS, None)
