"""pytest plugin for the tests' own runs of the suite: makes cases fail in the ways that `PERF_BREAK` lists.

`parity` breaks flash's logits, `nan` the eager model's, `tokens` flash's tokens, `skip` skips the original, `late` lets
flash fail after it was timed, `teardown` the eager model while it is taken down. `hang` befalls the original's memory
pass, `raise`, `memory`, `kill`, `interrupt` and `native_hang` the eager model's; so does `lost`, after which the device
takes no more work. `disk_full` lets the journal's disk run full when that begins, `unsaved` the one that the run is
saved on; `no_xformers` takes the CPU for a GPU whose xFormers is broken.
"""

import ctypes
import errno
import os
import signal
import time
import weakref

import pytest
import torch

from perf_tests.common.errors import BadInputError
from perf_tests.measure import procedure
from perf_tests.subjects import parity
from perf_tests.subjects.subject import Stage, Subject

BREAK = frozenset(os.environ.get("PERF_BREAK", "").split(","))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    if "skip" in BREAK and "original" in item.name:
        pytest.skip("no such thing here")


def break_logits(force, implementation, change):
    def forced(subject: Subject, *args: object) -> torch.Tensor:
        logits = force(subject, *args)
        return change(logits) if subject.implementation == implementation else logits

    return forced


if "parity" in BREAK:
    parity.force = break_logits(parity.force, "flash", lambda logits: logits + 0.01)
if "nan" in BREAK:
    parity.force = break_logits(parity.force, "eager", lambda logits: logits * torch.nan)

generate = Subject.generate
if "tokens" in BREAK:
    Subject.generate = lambda self, **other: generate(self, **other) + (self.implementation == "flash")

held: list[weakref.ref[torch.Tensor]] = []


def fail_allocation() -> None:
    """Ask the CPU's allocator for a petabyte, with a tensor in hand that the error's frames keep."""
    tensor = torch.ones(1_000_000)
    held.append(weakref.ref(tensor))
    tensor.expand(10**9, -1).contiguous()


def wait_for_ever() -> None:
    """A wait in native code that no signal ends, and that does not let go of Python's lock."""
    mutex = ctypes.create_string_buffer(256)  # all zeros: what PTHREAD_MUTEX_INITIALIZER is on Linux
    lock = ctypes.PyDLL(None).pthread_mutex_lock
    lock(mutex)
    lock(mutex)


def too_large() -> None:
    raise MemoryError("this model is too large\nfor this test")


def lose_device() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


BREAKAGES = {
    "raise": too_large,
    "lost": lose_device,
    "memory": fail_allocation,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
    "native_hang": wait_for_ever,
}

record_memory = procedure.record_memory


def record_or_break(subject: Subject, *args: object) -> tuple[dict[str, object], object]:
    assert not any(reference() is not None for reference in held), "the case before has left memory in use"
    if subject.implementation == "original" and "hang" in BREAK:
        time.sleep(120)
    if subject.implementation == "eager":
        for name in BREAK & BREAKAGES.keys():
            BREAKAGES[name]()
    return record_memory(subject, *args)


procedure.record_memory = record_or_break


def pytest_configure() -> None:
    """Break the suite's own plugins, which must not be imported before pytest has had a look at them."""
    from perf_tests.machine import describe
    from perf_tests.runs import journal
    from perf_tests.session import outcomes, saving, terminal, timeouts

    timeouts.GRACE_SECONDS = 1.0
    if "disk_full" in BREAK:
        journal.os = FullDisk()
    if "lost" in BREAK:
        outcomes.lost_device = lambda device: "CUDA error: an illegal memory access was encountered"
    if "unsaved" in BREAK:
        saving.write_file = write_nothing
    if "no_xformers" in BREAK:
        find_xformers = describe.find_xformers
        describe.find_xformers = terminal.find_xformers = lambda device: find_xformers("cuda")


class FullDisk:
    """Stands for the module `os` where the journal is written: the header and the first case's lines fit."""

    def __init__(self) -> None:
        self.room = 3
        self.getpid = os.getpid

    def fsync(self, descriptor: int) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_nothing(path: os.PathLike[str], content: bytes) -> None:
    """No room for anything; for the probe of whether there is, a file."""
    if content:
        raise BadInputError(f"{path}: cannot be written: {os.strerror(errno.ENOSPC)}")
    path.write_bytes(content)


estimate_speedup = procedure.estimate_speedup
if "late" in BREAK:

    def estimate_or_raise(*args: object) -> object:
        raise ArithmeticError("too late")

    procedure.estimate_speedup = estimate_or_raise

clear = Stage.clear
if "teardown" in BREAK:

    def clear_or_raise(self: Stage) -> None:
        broken = any(subject.implementation == "eager" for subject in self._subjects)
        clear(self)
        if broken:
            raise OSError("will not go")

    Stage.clear = clear_or_raise
