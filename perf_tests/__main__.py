"""The suite's commands: ``python -m perf_tests <command> …``.

A command is a module with ``main(arguments: list[str]) -> int``, imported only when it is asked for: what needs
torch imports it there, so that the others start at once.
"""

import importlib
import sys
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from perf_tests.common.console import show_everywhere
from perf_tests.common.git import forget_caller


class Command(NamedTuple):
    """One command: the module whose ``main`` runs it, and a line of help."""

    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "compare": Command("perf_tests.gate.command", "two saved runs: what got slower, fatter or wrong"),
    "ab": Command("perf_tests.ab.command", "two commits, measured in turn on this machine now"),
    "calibrate": Command("perf_tests.ab.calibrate", "this machine's noise, case by case"),
    "promote": Command("perf_tests.runs.promote", "make a saved run the baseline of a name"),
    "merge": Command("perf_tests.runs.merge", "shards of one run into one"),
    "report": Command("perf_tests.report.command", "tables, charts and history of saved runs"),
    "ci": Command("perf_tests.ci.command", "the steps of the GPU job: measure base against head, join shards"),
    "peers": Command("perf_tests.peers.command", "this model against the original, faster-whisper and openai-whisper"),
}


def main(arguments: list[str]) -> int:
    """Run one command.

    Returns:
        Its exit code; 2 where there is no such command.
    """
    show_everywhere()
    forget_caller()
    console = Console(stderr=True, highlight=False)
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        console.print("python -m perf_tests <command> …", markup=False)
        for command, entry in COMMANDS.items():
            console.print(f"  {escape(command):<10} {escape(entry.help)}")
        return 0 if arguments else 2
    if name not in COMMANDS:
        console.print(f"perf_tests: no command {name!r}; there are {', '.join(COMMANDS)}", markup=False)
        return 2
    module = importlib.import_module(COMMANDS[name].module)
    return int(module.main(rest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
