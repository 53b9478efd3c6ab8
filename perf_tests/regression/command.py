"""``python -m perf_tests compare BASE HEAD``: two saved runs, case by case.

Exit codes: 0 where nothing got worse (AMBIGUOUS included, unless ``--strict``), 1 where something did, 2 where that
could not be judged.
"""

import argparse
import json
from pathlib import Path

from perf_tests.plan import BadInputError

from .arguments import make_parser, percentage, run_command
from .comparison import Comparison, compare_runs
from .config import Config, find_config, read_config
from .pairs import ALLOWABLE, check_allowed
from .references import FORMS, locate, storage_path
from .runs import read_run
from .store import write_file
from .text import clean
from .thresholds import DEFAULTS, KINDS, TIME, Rules


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    return run_command("compare", lambda: _compare(_parse(arguments)))


def make_rules(options: argparse.Namespace, config: Config) -> Rules:
    """The rules from the command line and ``pyproject.toml``."""
    typed = {kind: getattr(options, f"{kind}_threshold") for kind in DEFAULTS}
    return Rules(
        kinds=frozenset(options.only or KINDS),
        command_line={kind: allowed for kind, allowed in typed.items() if allowed is not None},
        patterns=config.thresholds,
        accepted=config.accepted,
    )


def write_json(path: Path, comparison: Comparison) -> None:
    """Write ``--json``; strict JSON in ASCII."""
    write_file(path, (json.dumps(comparison.to_json(), indent=2, allow_nan=False) + "\n").encode())


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser(
        "compare", "Compare two saved runs of the suite, case by case: time, memory, counters, parity."
    )
    add = parser.add_argument
    add("base", metavar="BASE", help=FORMS)
    add("head", metavar="HEAD", help="the same")
    add("--json", type=Path, metavar="FILE", help="write the verdicts as JSON")
    add("--markdown", type=Path, metavar="FILE", help="write the report as Markdown")
    add("--strict", action="store_true", help="AMBIGUOUS ends with 1 too")
    add("--only", action="append", choices=KINDS, metavar="KIND", help=f"judge only this one of {', '.join(KINDS)}")
    add("--allow", action="append", default=[], metavar="KEY", help=f"may differ: {', '.join(ALLOWABLE)}")
    what = {TIME: "slower, by the control's measure", "memory": "more memory", "counters": "more operations"}
    for kind, default in DEFAULTS.items():
        text = f"{what[kind]} than this is a regression (default: {100 * default:g}%%)"
        add(f"--{kind}-threshold", type=percentage, metavar="PERCENT", help=text)
    add("--config", type=Path, metavar="FILE", help="another pyproject.toml with a [tool.perf_tests] table")
    return parser.parse_args(arguments)


def _compare(options: argparse.Namespace) -> int:
    check_allowed(options.allow)
    rules = make_rules(options, read_config(options.config or find_config()))
    storage = storage_path(options.storage)
    base_at, head_at = (locate(reference, storage) for reference in (options.base, options.head))
    outputs = [path for path in (options.json, options.markdown) if path is not None]
    _check_outputs(outputs, [base_at.path, head_at.path])
    timed = TIME in rules.kinds
    base, head = (read_run(found.path, found.name, timed=timed) for found in (base_at, head_at))
    comparison = compare_runs(base, head, rules, allow=options.allow, base_chosen=base_at.chosen, strict=options.strict)
    if options.json is not None:
        write_json(options.json, comparison)
    if options.markdown is not None:
        from .markdown import to_markdown

        write_file(options.markdown, to_markdown(comparison).encode())
    from .terminal import print_comparison

    print_comparison(comparison)
    return comparison.exit_code


def _check_outputs(outputs: list[Path], inputs: list[Path]) -> None:
    """A slip of the keyboard must not cost a run."""
    taken = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in taken:
            raise BadInputError(f"{clean(path)}: is a run or another output; write the report somewhere else")
        taken.add(path.resolve())
