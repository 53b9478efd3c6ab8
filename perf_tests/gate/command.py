"""``python -m perf_tests compare BASE HEAD``: two saved runs, case by case.

Exit codes: 0 where nothing got worse (AMBIGUOUS included, unless ``--strict``), 1 where something did, 2 where that
could not be judged.
"""

import argparse

from perf_tests.common.cli import make_parser
from perf_tests.runs.references import FORMS, add_storage, locate, storage_path
from perf_tests.runs.saved import read_run

from .comparison import Comparison, compare_runs
from .config import find_config, read_config
from .explain import explain_runs
from .options import add_gate_options, make_rules, run_gate
from .pairs import ALLOWABLE, check_allowed
from .thresholds import TIME


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    return run_gate("compare", lambda: _parse(arguments), _compare)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser("compare", "Compare two saved runs, case by case: time, memory, counters, parity.")
    add_storage(parser)
    parser.epilog = (
        "Ends with 0 where nothing got worse, with 1 where something did or is missing, with 2 where that could not be"
        " judged. Runs of unlike machines are refused; their exact numbers compare all the same with"
        " --only memory --only counters --only parity."
    )
    add = parser.add_argument
    add("base", metavar="BASE", help=FORMS)
    add("head", metavar="HEAD", help="the same")
    add("--explain", action="store_true", help="also show which operators' counts, or shares of the time, changed")
    add("--allow", action="append", default=[], metavar="KEY", help=f"may differ: {', '.join(ALLOWABLE)}")
    add_gate_options(parser)
    return parser.parse_args(arguments)


def _compare(options: argparse.Namespace) -> Comparison:
    check_allowed(options.allow)
    rules = make_rules(options, read_config(options.config or find_config()))
    storage = storage_path(options.storage)
    base_at, head_at = (locate(reference, storage) for reference in (options.base, options.head))
    timed = TIME in rules.kinds
    base, head = (read_run(found.path, found.name, timed=timed) for found in (base_at, head_at))
    comparison = compare_runs(
        base,
        head,
        rules,
        allow=options.allow,
        base_chosen=base_at.chosen,
        strict=options.strict,
        same=options.same,
    )
    if options.explain:
        return comparison._replace(explanations=explain_runs(base.document, head.document))
    return comparison
