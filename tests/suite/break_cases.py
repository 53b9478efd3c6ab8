"""pytest plugin for the tests' own runs of the suite: makes cases fail in the ways that `PERF_BREAK` lists.

`parity` and `nan` break flash's logits, `tokens` its tokens, `skip` skips the original, `late` lets flash fail after
it was timed, `teardown` while it is taken down. `raise`, `memory`, `gpu_memory`, `kill`, `interrupt`, `hang` and
`native_hang` befall the eager model's memory pass. `disk_full` lets the journal's disk run full when that begins,
`unsaved` the one that the run is saved on; `no_xformers` takes the CPU for a GPU whose xFormers is broken.
"""

import ctypes
import errno
import os
import signal
import time
import weakref

import pytest
import torch

from perf_tests import journal, machine, parity, procedure, saving, terminal, timeouts
from perf_tests.plan import BadInputError
from perf_tests.subject import Stage, Subject

BREAK = frozenset(os.environ.get("PERF_BREAK", "").split(","))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    if "skip" in BREAK and "original" in item.name:
        pytest.skip("no such thing here")


def break_logits(force, change):
    def forced(subject: Subject, *args: object) -> torch.Tensor:
        logits = force(subject, *args)
        return change(logits) if subject.implementation == "flash" else logits

    return forced


if "parity" in BREAK:
    parity.force = break_logits(parity.force, lambda logits: logits + 0.01)
if "nan" in BREAK:
    parity.force = break_logits(parity.force, lambda logits: logits * torch.nan)

generate = Subject.generate
if "tokens" in BREAK:
    Subject.generate = lambda self: generate(self) + (self.implementation == "flash")

held: list[weakref.ref[torch.Tensor]] = []


def fail_allocation() -> None:
    """Ask the CPU's allocator for a petabyte, with a tensor in hand that the error's frames keep."""
    tensor = torch.ones(1_000_000)
    held.append(weakref.ref(tensor))
    tensor.expand(10**9, -1).contiguous()


def fail_gpu_allocation() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.25 GiB is"
        " free. Including non-PyTorch memory, this process has 77.85 GiB memory in use."
    )


def sleep_with_the_lock() -> None:
    """A sleep in native code that does not let go of Python's lock, as a hanging kernel call would not."""
    ctypes.PyDLL(None).sleep(120)


def too_large() -> None:
    raise MemoryError("this model is too large\nfor this test")


BREAKAGES = {
    "raise": too_large,
    "memory": fail_allocation,
    "gpu_memory": fail_gpu_allocation,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
    "hang": lambda: time.sleep(120),
    "native_hang": sleep_with_the_lock,
}

record_memory = procedure.record_memory


def record_or_break(subject: Subject) -> dict[str, object]:
    assert not any(reference() is not None for reference in held), "the case before has left memory in use"
    if subject.implementation == "eager":
        for name in BREAK & BREAKAGES.keys():
            BREAKAGES[name]()
    return record_memory(subject)


procedure.record_memory = record_or_break
timeouts.GRACE_SECONDS = 1.0

fsync = os.fsync
if "disk_full" in BREAK:

    def sync_until_full(descriptor: int) -> None:
        if sync_until_full.calls > 2:  # the header, and the first case's two lines
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync_until_full.calls += 1
        fsync(descriptor)

    sync_until_full.calls = 0
    journal.os = type("FullDisk", (), {"fsync": staticmethod(sync_until_full), "getpid": staticmethod(os.getpid)})

if "unsaved" in BREAK:

    def write_nothing(path: os.PathLike[str], content: bytes) -> None:
        if content:
            raise BadInputError(f"{path}: cannot be written: {os.strerror(errno.ENOSPC)}")
        path.write_bytes(content)

    saving.write_file = write_nothing

find_xformers = machine.find_xformers
if "no_xformers" in BREAK:
    machine.find_xformers = terminal.find_xformers = lambda device: find_xformers("cuda")

estimate_speedup = procedure.estimate_speedup
if "late" in BREAK:

    def estimate_or_raise(*args: object) -> object:
        raise ArithmeticError("too late")

    procedure.estimate_speedup = estimate_or_raise

clear = Stage.clear
if "teardown" in BREAK:

    def clear_or_raise(self: Stage) -> None:
        broken = any(subject.implementation == "flash" for subject in self._subjects)
        clear(self)
        if broken:
            raise OSError("will not go")

    Stage.clear = clear_or_raise
