"""Miniature models."""

from tests.mini_models import make_stage, mini_cell, stage  # noqa: F401  # fixtures
