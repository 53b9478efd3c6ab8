"""What the gate's commands have in common: a parser that refuses in one line, and ending in one."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from perf_tests.plan import BadInputError

from .references import DEFAULT_STORAGE
from .text import clean
from .verdicts import COULD_NOT_JUDGE


class Parser(argparse.ArgumentParser):
    """Refuses what was typed in one line, like everything else."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong."""
        raise BadInputError(f"{message} (--help says what there is)")


def make_parser(command: str, description: str, *, storage: bool = True) -> Parser:
    """A command's parser, with ``--storage`` if it reads saved runs."""
    parser = Parser(prog=f"python -m perf_tests {command}", description=description, allow_abbrev=False)
    if not storage:
        return parser
    parser.add_argument(
        "--storage",
        default=DEFAULT_STORAGE,
        metavar="DIR",
        help=f"where pytest-benchmark saved the runs, as its --benchmark-storage (default: {DEFAULT_STORAGE})",
    )
    return parser


def percentage(text: str) -> float:
    """A percentage of 0 or more, as a fraction."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage of 0 or more")
    return value / 100


def run_command(command: str, action: Callable[[], int]) -> int:
    """Run ``action``; turn what it refuses into one line on standard error and exit code 2."""
    try:
        return action()
    except BadInputError as error:
        print(f"perf_tests {command}: {clean(error, 2000)}", file=sys.stderr)
        return COULD_NOT_JUDGE
    except BrokenPipeError:  # `compare … | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return COULD_NOT_JUDGE
