"""The tests on fake CUDA, in a process of their own: what lets tensors say `cuda` would change all others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="where devices are registered is known of Linux alone")


@pytest.mark.parametrize("cases", ["not memory", pytest.param("memory", marks=pytest.mark.slow)])
def test_fake_cuda(cases: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-k", cases]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/model/fake_cuda_cases.py", *options],
        cwd=ROOT,
        # A device that is there stays out of it.
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout
