"""The compiled step in several threads, of one call and of many at once, and in a forked process."""

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from whisper_flash_attention import cpu_library

from .step_cases import DTYPES, VOCABULARY, Case, Plan, assert_same_bits, levels, make_case, read

pytestmark = pytest.mark.skipif(cpu_library.why_not() is not None, reason=str(cpu_library.why_not()))
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


SHARED = [
    Plan(frames=1100, layers=2),
    Plan(heads=6, head_dim=24, sequences=6, beams=3, frames=600),
    Plan(heads=5, sequences=2, fresh=6, start=3),  # more rows than share one reading of the weights
    Plan(heads=1, head_dim=100, sequences=9, feed_forward=17),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plan", SHARED, ids=[f"{plan.heads} heads" for plan in SHARED])
def test_the_number_of_threads_changes_no_bit(plan: Plan, dtype: torch.dtype) -> None:
    case = make_case(plan._replace(dtype=dtype))
    for level in levels():
        alone = read(case, plan.tokens(), plan.start, level=level, threads=1)
        for threads in (2, 3, 5, 8):
            assert_same_bits(read(case, plan.tokens(), plan.start, level=level, threads=threads), alone)


def test_calls_of_many_threads_at_once() -> None:
    """One model, and a cache for each."""
    plan, callers = Plan(room=6, layers=2, frames=600), 5
    case = make_case(plan)
    caches = [make_case(plan, seed).cache for seed in range(callers)]
    barrier = threading.Barrier(callers)

    def decode(seed: int) -> Tensor:
        step, generator = Case(case.weights, caches[seed]).bind(), torch.Generator().manual_seed(seed)
        given = torch.randint(VOCABULARY, (7, 1, 1), generator=generator)
        steps = (
            step.run(tokens, None, None, start, 1, threads=2, level=cpu_library.level())
            for start, tokens in enumerate(given)
        )
        return torch.cat([*steps, step.cache.self_buffer.flatten()[None]], dim=-1)

    def decode_at_once(seed: int) -> list[Tensor]:
        barrier.wait()
        with torch.no_grad():
            return [decode(seed) for _ in range(10)]

    expected = [decode(seed) for seed in range(callers)]
    with ThreadPoolExecutor(callers) as pool:
        for outputs, one in zip(pool.map(decode_at_once, range(callers)), expected, strict=True):
            assert all(torch.equal(output, one) for output in outputs)


FORKED = """
    import os, signal
    import torch
    from tests.model.step_cases import Plan, bits, make_case, read

    torch.set_grad_enabled(False)
    plan = Plan(frames=600)
    case = make_case(plan)
    expected = read(case, plan.tokens(), 0, threads=2)
    child = os.fork()
    if not child:
        signal.alarm(60)
        torch.set_num_threads(1)
        logits = case.bind()(plan.tokens(), 0)
        os._exit(not torch.equal(bits(logits), bits(expected.logits)))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_goes_on_with_one_thread() -> None:
    """As the workers of PyTorch's data loaders do; after more threads, its own operators want that too."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
