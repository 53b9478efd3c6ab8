"""Fixtures of the tests of whole sessions."""

import shutil
from pathlib import Path

import pytest

from tests.running import ROOT


@pytest.fixture
def bare_tree(tmp_path: Path) -> Path:
    """The suite's files in a folder that is no checkout."""
    tree = tmp_path / "tree"
    for name in ("perf_tests", "whisper_flash_attention", "tests/plugins"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    return tree
