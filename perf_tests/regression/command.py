"""``python -m perf_tests compare BASE HEAD``: two saved runs, case by case.

Exit codes: 0 where nothing got worse (AMBIGUOUS included, unless ``--strict``), 1 where something did, 2 where that
could not be judged.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perf_tests.plan import BadInputError

from . import explain
from .arguments import make_parser, percentage, run_command
from .comparison import compare_runs
from .config import Config, find_config, read_config
from .pairs import ALLOWABLE, check_allowed
from .references import FORMS, locate, storage_path
from .runs import parse_document, read_bytes, read_run
from .store import write_file
from .text import clean
from .thresholds import DEFAULTS, KINDS, TIME, Rules
from .verdicts import COULD_NOT_JUDGE


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""

    def run() -> int:
        options = _parse(arguments)
        outputs = [path for path in (options.json, options.markdown) if path is not None]
        _check_outputs(outputs)
        try:
            return _compare(options)
        except BadInputError as error:
            if options.json is not None:  # or an older verdict would be taken for this one
                _write_json(options.json, refusal(error))
            raise

    return run_command("compare", run)


def make_rules(options: argparse.Namespace, config: Config) -> Rules:
    """The rules from the command line and ``pyproject.toml``."""
    typed = {kind: getattr(options, f"{kind}_threshold") for kind in DEFAULTS}
    return Rules(
        kinds=frozenset(options.only or KINDS),
        command_line={kind: allowed for kind, allowed in typed.items() if allowed is not None},
        patterns=config.thresholds,
        accepted=config.accepted,
    )


def refusal(error: BadInputError) -> dict[str, Any]:
    """What ``--json`` holds where the runs could not be compared."""
    return {"verdict": "REFUSED", "exit_code": COULD_NOT_JUDGE, "notes": [clean(error, 2000)], "cases": []}


def _write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Strict JSON in ASCII."""
    write_file(path, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser("compare", "Compare two saved runs, case by case: time, memory, counters, parity.")
    parser.epilog = (
        "Ends with 0 where nothing got worse, with 1 where something did or is missing, with 2 where that could not be"
        " judged. Runs of unlike machines are refused; their exact numbers compare all the same with"
        " --only memory --only counters --only parity."
    )
    add = parser.add_argument
    add("base", metavar="BASE", help=FORMS)
    add("head", metavar="HEAD", help="the same")
    add("--json", type=Path, metavar="FILE", help="write the verdicts as JSON")
    add("--markdown", type=Path, metavar="FILE", help="write the report as Markdown")
    add("--strict", action="store_true", help="AMBIGUOUS ends with 1 too")
    add("--only", action="append", choices=KINDS, metavar="KIND", help=f"judge only this one of {', '.join(KINDS)}")
    add("--explain", action="store_true", help="also show which operators' counts, or shares of the time, changed")
    add("--allow", action="append", default=[], metavar="KEY", help=f"may differ: {', '.join(ALLOWABLE)}")
    what = {TIME: "slower than this by the control's measure", "memory": "growth above this", "counters": "the same"}
    for kind, default in DEFAULTS.items():
        text = f"{what[kind]} is a regression (default: {100 * default:g})"
        add(f"--{kind}-threshold", type=percentage, metavar="PERCENT", help=text)
    add("--config", type=Path, metavar="FILE", help="another pyproject.toml with a [tool.perf_tests] table")
    return parser.parse_args(arguments)


def _compare(options: argparse.Namespace) -> int:
    check_allowed(options.allow)
    rules = make_rules(options, read_config(options.config or find_config()))
    storage = storage_path(options.storage)
    base_at, head_at = (locate(reference, storage) for reference in (options.base, options.head))
    timed = TIME in rules.kinds
    base, head = (read_run(found.path, found.name, timed=timed) for found in (base_at, head_at))
    comparison = compare_runs(base, head, rules, allow=options.allow, base_chosen=base_at.chosen, strict=options.strict)
    explanations = explain.explain_runs(base.document, head.document) if options.explain else {}
    if options.json is not None:
        report = comparison.to_json()
        for case in report["cases"]:
            if case["id"] in explanations:
                case["explanation"] = explain.to_json(explanations[case["id"]])
        _write_json(options.json, report)
    if options.markdown is not None:
        from .markdown import to_markdown

        write_file(options.markdown, to_markdown(comparison).encode())
    from .terminal import print_comparison

    print_comparison(comparison, explanations=explanations)
    return comparison.exit_code


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
