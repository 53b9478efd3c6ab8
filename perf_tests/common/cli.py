"""What the commands have in common: a parser that refuses in one line, types of arguments, and ending in one line."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from .errors import COULD_NOT_JUDGE, BadInputError
from .text import clean


class Parser(argparse.ArgumentParser):
    """Refuses what was typed in one line, like everything else."""

    def error(self, message: str) -> NoReturn:
        raise BadInputError(f"{message} (--help says what there is)")


def make_parser(command: str, description: str) -> Parser:
    return Parser(prog=f"python -m perf_tests {command}", description=description, allow_abbrev=False)


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
    except OSError as error:  # a folder that is a file, a disk that is full, a program that is missing
        where = f"{clean(error.filename)}: " if error.filename else ""
        print(f"perf_tests {command}: {where}{clean(error.strerror or error)}", file=sys.stderr)
        return COULD_NOT_JUDGE


def percentage(text: str) -> float:
    """A percentage of 0 or more, as a fraction."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage of 0 or more")
    return value / 100


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


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """A command's own arguments, and pytest's after ``--``."""
    index = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:index], arguments[index + 1 :]


def has_option(arguments: Sequence[str], option: str) -> bool:
    """Whether pytest's arguments have ``option``, with ``=`` or without."""
    return any(argument.partition("=")[0] == option for argument in arguments)


def option_value(arguments: Sequence[str], option: str) -> str | None:
    """The value that ``option`` has in pytest's arguments, the last one, with ``=`` or as the next argument."""
    found = None
    for index, argument in enumerate(arguments, 1):
        name, equals, value = argument.partition("=")
        if name == option:
            found = value if equals else next(iter(arguments[index:]), None)
    return found


def with_default(arguments: Sequence[str], option: str, value: str) -> list[str]:
    """Pytest's arguments, with ``option`` if they do not have it."""
    return [*arguments] if has_option(arguments, option) else [f"{option}={value}", *arguments]


def tell(command: str, line: str) -> None:
    """Progress goes to standard error: standard output is the report's."""
    print(f"{command}: {line}", file=sys.stderr, flush=True)
