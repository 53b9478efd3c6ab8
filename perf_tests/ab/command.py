"""``python -m perf_tests ab BASE_REV HEAD_REV``: two commits, measured in turn on this machine now.

Exit codes as ``compare``'s: 0 where nothing got worse, 1 where something did, 2 where that could not be judged or the
session was interrupted.
"""

import argparse
import hashlib
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from perf_tests.plan import BadInputError
from perf_tests.regression.arguments import make_parser
from perf_tests.regression.comparison import Comparison, compare_runs
from perf_tests.regression.config import find_config, read_config
from perf_tests.regression.gate import add_gate_options, make_rules, run_gate
from perf_tests.regression.text import clean, count_of
from perf_tests.regression.thresholds import AB_DEFAULTS, Rules

from .session import LEAST_BLOCKS, Limits, Pooled, Session, run_session
from .trees import Revision, digest_of, find_repository, find_revision, make_sides

BLOCKS = 6
SESSIONS = ".perf_runs"
# What a process measures unless something else is asked for. The other implementations are the same on both sides. Many
# short processes tell more than few long ones, down to where starting them takes as long as measuring.
DEFAULT_ARGUMENTS = {"--perf-implementation": "flash", "--perf-case-budget": "20"}


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    own, rest = _split(arguments)
    return run_gate("ab", lambda: _parse(own), lambda options: measure_and_compare(options, rest))


def measure_and_compare(options: argparse.Namespace, arguments: Sequence[str]) -> Comparison:
    """Run or resume the session that ``options`` ask for.

    Raises:
        BadInputError: something is wrong with what was asked for, a process ended without a run, or the user
            interrupted; what was measured is on disk.
    """
    rules = make_rules(options, read_config(options.config or find_config()), AB_DEFAULTS)
    repository = find_repository(Path.cwd())
    base, head = (find_revision(repository, asked) for asked in (options.base, options.head))
    arguments = with_defaults(arguments)
    name = session_name(repository, base, head, arguments)
    folder = options.keep or repository / SESSIONS / name
    trees = folder / "trees"
    try:
        with terminations_as_interrupts():
            session = Session(name, folder, make_sides(repository, base, head, trees), arguments, tell)
            _say_what_is_measured(session, fresh=options.fresh)
            limits = Limits(options.processes, None if options.budget is None else 60 * options.budget)
            return run_session(session, limits, lambda pooled: _compare(pooled, rules, options.strict))
    except KeyboardInterrupt:
        raise BadInputError(
            f"interrupted; what was measured is in {clean(folder)}, and the same command goes on from there"
        ) from None
    finally:
        shutil.rmtree(trees, ignore_errors=True)


def with_defaults(arguments: Sequence[str]) -> list[str]:
    """Pytest's arguments, with the defaults of what they leave open."""
    fixed = any(argument.partition("=")[0] == "--perf-rounds" for argument in arguments)
    given = {argument.partition("=")[0] for argument in arguments}
    left = {
        option: value
        for option, value in DEFAULT_ARGUMENTS.items()
        if option not in given and not (fixed and option == "--perf-case-budget")
    }
    return [*(f"{option}={value}" for option, value in left.items()), *arguments]


def session_name(repository: Path, base: Revision, head: Revision, arguments: Sequence[str]) -> str:
    """The folder of the session that measures just this, so that it is found again."""
    parts = [digest_of(repository, base), digest_of(repository, head), *arguments]
    return f"ab-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]}"


@contextmanager
def terminations_as_interrupts() -> Iterator[None]:
    """SIGTERM, as a CI job's cancellation sends it, ends in order what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def tell(line: str) -> None:
    """Progress goes to standard error: standard output is the report's."""
    print(f"ab: {line}", file=sys.stderr, flush=True)


def _say_what_is_measured(session: Session, *, fresh: bool) -> None:
    base, head = session.sides
    tell(f"base {base.revision} (package {base.package_hash}), head {head.revision} (package {head.package_hash})")
    if base.package_hash == head.package_hash:
        tell("both sides have the same package: whatever differs is noise")
    done = 0 if fresh else session.resume()
    if done:
        tell(f"what was measured before it was interrupted is kept: {count_of(done, 'run')}")


def _compare(pooled: Pooled, rules: Rules, strict: bool) -> Comparison:
    base, head = pooled.runs()
    return compare_runs(base, head, rules, strict=strict)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Own arguments, and pytest's after ``--``."""
    index = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:index], arguments[index + 1 :]


def _parse(arguments: list[str]) -> argparse.Namespace:
    description = "Measure two commits in turn, in fresh processes on this machine now, and compare them."
    parser = make_parser("ab", description, storage=False)
    parser.usage = "%(prog)s [options] BASE_REV HEAD_REV [-- pytest arguments]"
    parser.epilog = (
        "Both sides run HEAD's suite on their own package. Only flash is measured unless --perf-implementation says"
        " otherwise. An interrupted session goes on with the same command. Exit codes as compare's."
    )
    add = parser.add_argument
    add("base", metavar="BASE_REV", help="a commit, branch or tag; '.' is the working tree")
    add("head", metavar="HEAD_REV", help="the same")
    add("--processes", type=_at_least(LEAST_BLOCKS), default=BLOCKS, metavar="N", help=f"per side (default: {BLOCKS})")
    add(
        "--budget",
        type=_minutes,
        metavar="MINUTES",
        help="instead of N processes: go on where a verdict is not settled, until this is spent",
    )
    add("--keep", type=Path, metavar="DIR", help=f"the session's folder (default: one below {SESSIONS}/)")
    add("--fresh", action="store_true", help="measure anew what an interrupted session measured")
    add_gate_options(parser, AB_DEFAULTS)
    return parser.parse_args(arguments)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no number of at least {least}")
        return int(text)

    return number


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0")
    return value
