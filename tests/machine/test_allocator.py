"""The C library's allocator before rounds."""

import platform
import subprocess
import sys

import pytest

# Blocks as an encoder's activations are: glibc gives each of them back at once, until it is settled.
PROGRAM = """
import resource
import torch
from perf_tests.machine.allocator import settle_allocator

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        blocks = [torch.ones(9 << 20, dtype=torch.uint8) for _ in range(2)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults(5)
settle_allocator()
faults(1)
print(before, faults(5))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_stays_with_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 5 * 1000
    assert after < 50
