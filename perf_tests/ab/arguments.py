"""What ``ab`` and ``calibrate`` share: pytest's arguments after ``--``, progress, and being interrupted."""

import argparse
import hashlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from perf_tests.plan import BadInputError
from perf_tests.regression.text import clean

# Below the repository's root, where interrupted sessions wait to go on.
SESSIONS = ".perf_runs"


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """A command's own arguments, and pytest's after ``--``."""
    index = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:index], arguments[index + 1 :]


def with_default(arguments: Sequence[str], option: str, value: str) -> list[str]:
    """Pytest's arguments, with ``option`` if they do not have it."""
    return [*arguments] if has_option(arguments, option) else [f"{option}={value}", *arguments]


def has_option(arguments: Sequence[str], option: str) -> bool:
    """Whether pytest's arguments have ``option``, with ``=`` or without."""
    return any(argument.partition("=")[0] == option for argument in arguments)


def at_least(least: int) -> Callable[[str], int]:
    """An argument's type: a whole number of ``least`` or more."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no number of at least {least}")
        return int(text)

    return number


def minutes(text: str) -> float:
    """An argument's type: minutes above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0")
    return value


def tell(command: str, line: str) -> None:
    """Progress goes to standard error: standard output is the report's."""
    print(f"{command}: {line}", file=sys.stderr, flush=True)


def session_name(command: str, parts: Sequence[str]) -> str:
    """The name of the session of ``command`` that measures just what ``parts`` say, so that it is found again."""
    return f"{command}-{hashlib.sha256(json.dumps([*parts]).encode()).hexdigest()[:12]}"


@contextmanager
def interrupts_end_in_order(folder: Path) -> Iterator[None]:
    """Ctrl-C, and SIGTERM as a CI job's cancellation sends it, end in one line that says where the work waits.

    Raises:
        BadInputError: either arrived.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        raise BadInputError(
            f"interrupted; what was measured is in {clean(folder)}, and the same command goes on from there"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)
