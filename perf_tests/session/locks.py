"""One run at a time on a GPU, or on a machine's CPU; the second is refused, or waits its turn."""

import contextlib
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from perf_tests.common.errors import BadInputError
from perf_tests.common.files import write_file
from perf_tests.common.text import clean
from perf_tests.matrix.options import PLAN, whole_number

if TYPE_CHECKING:
    import filelock

OPTION = "--perf-wait"
FOLDER = "PERF_LOCKS"
POLL_SECONDS = 0.5


def add_option(parser: pytest.Parser) -> None:
    parser.getgroup("perf").addoption(
        OPTION,
        metavar="MINUTES",
        help="Wait so long while another run measures on this GPU or CPU. Default: refuse at once.",
    )


def read_option(config: pytest.Config) -> int:
    """How many minutes to wait; 0 where nothing was typed.

    Raises:
        BadInputError: what was typed is no number of minutes.
    """
    typed = config.getoption("perf_wait")
    return 0 if typed is None else whole_number(typed, OPTION, "minutes")


def lock_machine(config: pytest.Config) -> None:
    """Take the lock before anything is measured; it is free again when the process ends, however it does.

    Raises:
        pytest.UsageError: another run has it, and still had it when the wait was over.
    """
    plan = config.stash[PLAN]
    if plan.counters_only and not plan.on_cuda:  # what is only counted disturbs nobody, and nobody disturbs it
        return
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    try:
        name = lock_name(plan.device)
        lock = take(name, 60.0 * read_option(config), reporter.write_line if reporter else print)
    except BadInputError as error:
        raise pytest.UsageError(str(error)) from None
    config.add_cleanup(lock.release)


def lock_folder() -> Path:
    """Where the locks lie: ``$PERF_LOCKS``, or a folder of the system's temporary one that all users share."""
    return Path(os.environ.get(FOLDER) or Path(tempfile.gettempdir()) / "whisper-flash-attention-locks")


def lock_name(device: str) -> str:
    """What is locked: ``cpu``, or one GPU by its unique id. Imports torch for a GPU."""
    if not device.startswith("cuda"):
        return "cpu"
    import torch

    return f"gpu-{torch.cuda.get_device_properties(torch.device(device)).uuid}"


def take(name: str, wait_seconds: float, say: Callable[[str], object]) -> "filelock.BaseFileLock":
    """Take the lock called ``name`` and write down who has it.

    Raises:
        BadInputError: it cannot be had, with who has it.
    """
    import filelock

    folder = lock_folder()
    lock = filelock.FileLock(folder / f"{name}.lock", mode=0o666)
    holder = folder / f"{name}.json"
    try:
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o1777)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            what = "this GPU" if name.startswith("gpu") else "this machine's CPU"
            who = f"another run measures on {what} ({describe_holder(holder)})"
            if not wait_seconds:
                raise BadInputError(f"{who}; {OPTION} MINUTES waits for it") from None
            say(f"perf: {who}; waiting for it, {wait_seconds / 60:.0f} min at most")
            lock.acquire(timeout=wait_seconds, poll_interval=POLL_SECONDS)
    except filelock.Timeout:
        raise BadInputError(f"{OPTION}: {who}, and still did after {wait_seconds / 60:.0f} min") from None
    except OSError as error:
        raise BadInputError(f"{clean(folder)}: no lock can be taken there: {error.strerror}; set ${FOLDER}") from None
    record = {"pid": os.getpid(), "since": time.time(), "command": shlex.join(sys.argv)}
    with contextlib.suppress(BadInputError):  # another user's note is in the way: the lock holds all the same
        write_file(holder, json.dumps(record).encode())
    return lock


def describe_holder(path: Path) -> str:
    """Who has the lock, as far as they wrote it down."""
    try:
        record = json.loads(path.read_bytes())
        since = time.strftime("%H:%M", time.localtime(float(record["since"])))
        return f"process {int(record['pid'])} since {since}: {clean(record['command'], 120)}"
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return "process unknown"
