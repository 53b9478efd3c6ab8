"""The fixtures of the gate's tests."""

from tests.gate.conftest import _apart, base, compare, head, run_compare  # noqa: F401  # fixtures
