"""What the commands that give verdicts share: thresholds as options, the report's files, the ways they end."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from perf_tests.common.cli import percentage, run_command
from perf_tests.common.errors import COULD_NOT_JUDGE, BadInputError
from perf_tests.common.files import write_file
from perf_tests.common.text import clean
from perf_tests.runs.document import parse_document, read_bytes

from .comparison import Comparison
from .config import Config
from .thresholds import DEFAULT_OF_PROCESSES, DEFAULTS, KINDS, TIME, Rules


def add_gate_options(parser: argparse.ArgumentParser) -> None:
    """Add thresholds, and the report's files."""
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write the verdicts as JSON")
    add("--markdown", type=Path, metavar="FILE", help="write the report as Markdown")
    add("--strict", action="store_true", help="AMBIGUOUS ends with 1 too")
    add("--only", action="append", choices=KINDS, metavar="KIND", help=f"judge only this one of {', '.join(KINDS)}")
    what = {TIME: "growth of the corrected time above this", "memory": "growth above this", "counters": "the same"}
    of_processes = f"; {100 * DEFAULT_OF_PROCESSES:g} where several processes measured each side"
    for kind, default in DEFAULTS.items():
        text = f"{what[kind]} is a regression (default: {100 * default:g}{of_processes if kind == TIME else ''})"
        add(f"--{kind}-threshold", type=percentage, metavar="PERCENT", help=text)
    add("--same", action="store_true", help="compare one package with itself too: what differs then is noise")
    add("--note", action="append", default=[], metavar="TEXT", help="a line for the report; may be given several times")
    add("--config", type=Path, metavar="FILE", help="another pyproject.toml with a [tool.perf_tests] table")


def make_rules(options: argparse.Namespace, config: Config) -> Rules:
    """The rules from the command line and ``pyproject.toml``."""
    typed = {kind: getattr(options, f"{kind}_threshold") for kind in DEFAULTS}
    return Rules(
        kinds=frozenset(options.only or KINDS),
        command_line={kind: allowed for kind, allowed in typed.items() if allowed is not None},
        patterns=config.thresholds,
        accepted=config.accepted,
    )


def run_gate(
    command: str, parse: Callable[[], argparse.Namespace], judge: Callable[[argparse.Namespace], Comparison]
) -> int:
    """Parse, judge, report; return the exit code.

    What is refused is one line on standard error, and a refusal in ``--json``: an older verdict there would be taken
    for this one.
    """

    def run() -> int:
        options = parse()
        _check_outputs([path for path in (options.json, options.markdown) if path is not None])
        try:
            comparison = judge(options)
        except BadInputError as error:
            if options.json is not None:
                _write_json(options.json, refusal(error))
            raise
        notes = (*(clean(note) for note in options.note), *comparison.notes)
        return _report(comparison._replace(notes=notes), options)

    return run_command(command, run)


def refusal(error: BadInputError) -> dict[str, Any]:
    """What ``--json`` holds where nothing could be compared."""
    return {"verdict": "REFUSED", "exit_code": COULD_NOT_JUDGE, "notes": [clean(error, 2000)], "cases": []}


def _report(comparison: Comparison, options: argparse.Namespace) -> int:
    if options.json is not None:
        _write_json(options.json, comparison.to_json())
    if options.markdown is not None:
        from .markdown import to_markdown

        write_file(options.markdown, to_markdown(comparison).encode())
    from .terminal import print_comparison

    print_comparison(comparison)
    return comparison.exit_code


def _write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Strict JSON in ASCII."""
    write_file(path, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())


def _check_outputs(outputs: list[Path]) -> None:
    """A slip of the keyboard must not cost a run.

    Raises:
        BadInputError: an output is a saved run, a folder, or both outputs are one file.
    """
    for path in outputs:
        if path.is_dir():
            raise BadInputError(f"{clean(path)}: a folder; give a file to write the report to")
        if path.is_file() and _is_run(path):
            raise BadInputError(f"{clean(path)}: a saved run; write the report somewhere else")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise BadInputError("--json and --markdown: the same file twice")


def _is_run(path: Path) -> bool:
    try:
        parse_document(read_bytes(path), path)
    except BadInputError:
        return False
    return True
