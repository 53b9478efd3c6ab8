"""The tests on fake CUDA, in a process of their own: what lets tensors say `cuda` would change all others."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_fake_cuda() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/model/fake_cuda_cases.py", "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        # A device that is there stays out of it.
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout
