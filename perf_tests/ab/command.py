"""``python -m perf_tests ab BASE_REV HEAD_REV``: two commits, measured in turn on this machine now.

Exit codes as ``compare``'s: 0 where nothing got worse, 1 where something did, 2 where that could not be judged or the
session was interrupted.
"""

import argparse
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from perf_tests.common.cli import at_least, has_option, make_parser, minutes, split_arguments, tell, with_default
from perf_tests.common.text import count_of
from perf_tests.gate.comparison import Comparison, compare_runs
from perf_tests.gate.config import find_config, read_config
from perf_tests.gate.options import add_gate_options, make_rules, run_gate
from perf_tests.gate.thresholds import Rules

from .arguments import SESSIONS, session_kept, session_name
from .session import LEAST_BLOCKS, Limits, Pooled, Session, run_session
from .trees import check_packages, digest_of, find_repository, find_revision, make_sides

BLOCKS = 6
# Many short processes tell more than few long ones, down to where starting one takes as long as measuring.
CASE_BUDGET_SECONDS = 18


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    own, rest = split_arguments(arguments)
    return run_gate("ab", lambda: _parse(own), lambda options: measure_and_compare(options, rest))


def measure_and_compare(options: argparse.Namespace, arguments: Sequence[str]) -> Comparison:
    """Run or resume the session that ``options`` ask for.

    Raises:
        BadInputError: something is wrong with what was asked for, a process ended without a run, or the user
            interrupted; what was measured is on disk.
    """
    rules = make_rules(options, read_config(options.config or find_config()))
    repository = find_repository(Path.cwd())
    base, head = (find_revision(repository, asked) for asked in (options.base, options.head))
    if not options.same:
        check_packages(repository, base, head)
    arguments = with_defaults(arguments)
    name = session_name("ab", [digest_of(repository, base), digest_of(repository, head), *arguments])
    folder = options.keep or repository / SESSIONS / name
    trees = folder / "trees"
    limits = Limits(options.processes, None if options.budget is None else 60 * options.budget)
    with session_kept(folder, "--keep DIR keeps the session elsewhere"):
        try:
            sides = make_sides(repository, base, head, trees)
            session = Session(name, folder, sides, arguments, partial(tell, "ab"))
            _prepare(session, fresh=options.fresh)
            return run_session(session, limits, lambda pooled: _compare(pooled, rules, options))
        finally:
            shutil.rmtree(trees, ignore_errors=True)


def with_defaults(arguments: Sequence[str]) -> list[str]:
    """Pytest's arguments, with the defaults of what they leave open."""
    arguments = with_default(arguments, "--perf-implementation", "flash")
    if has_option(arguments, "--perf-rounds"):
        return arguments
    return with_default(arguments, "--perf-case-budget", f"{CASE_BUDGET_SECONDS:g}")


def _prepare(session: Session, *, fresh: bool) -> None:
    """Say what is measured, and go on from where an earlier session stopped."""
    base, head = session.sides
    session.tell(
        f"base {base.revision} (package {base.package_hash}), head {head.revision} (package {head.package_hash})"
    )
    if fresh:
        session.forget()
    done = 0 if fresh else session.resume()
    if done:
        session.tell(f"what was measured before it was interrupted is kept: {count_of(done, 'run')}")


def _compare(pooled: Pooled, rules: Rules, options: argparse.Namespace) -> Comparison:
    base, head = pooled.runs()
    return compare_runs(base, head, rules, strict=options.strict, same=options.same)


def _parse(arguments: list[str]) -> argparse.Namespace:
    description = "Measure two commits in turn, in fresh processes on this machine now, and compare them."
    parser = make_parser("ab", description)
    parser.usage = "%(prog)s [options] BASE_REV HEAD_REV [-- pytest arguments]"
    parser.epilog = (
        "Both sides run HEAD's suite on their own package. Only flash is measured unless --perf-implementation says"
        " otherwise. An interrupted session goes on with the same command. Exit codes as compare's."
    )
    add = parser.add_argument
    add("base", metavar="BASE_REV", help="a commit, branch or tag; '.' is the working tree")
    add("head", metavar="HEAD_REV", help="the same")
    add("--processes", type=at_least(LEAST_BLOCKS), default=BLOCKS, metavar="N", help=f"per side (default: {BLOCKS})")
    add(
        "--budget",
        type=minutes,
        metavar="MINUTES",
        help="instead of N processes: go on where a verdict is not settled, until this is spent",
    )
    add("--keep", type=Path, metavar="DIR", help=f"the session's folder (default: one below {SESSIONS}/)")
    add("--fresh", action="store_true", help="measure anew what an interrupted session measured")
    add_gate_options(parser)
    return parser.parse_args(arguments)
