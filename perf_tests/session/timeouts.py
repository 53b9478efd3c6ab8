"""A case that hangs ends as failed, through pytest-timeout; in native code it ends the process.

pytest-timeout raises in the main thread, which native code that does not return never sees. Some time later a
watchdog of faulthandler, a thread that needs nothing of Python, writes the stacks into the journal and ends the
process; ``--perf-resume`` then goes on after the case.
"""

import faulthandler
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from perf_tests.matrix.estimate import TYPICAL_CPU, forecast
from perf_tests.matrix.options import PLAN, whole_number

from .outcomes import JOURNAL

OPTION = "--perf-timeout"
# The default leaves room for machines much slower than the estimate takes them for: it is for hangs, not for haste.
LEAST_SECONDS = 900.0
TIMES_THE_ESTIMATE = 20
GRACE_SECONDS = 60.0

SECONDS = pytest.StashKey[float]()


def add_option(parser: pytest.Parser) -> None:
    parser.getgroup("perf").addoption(
        OPTION,
        metavar="SECONDS",
        help=f"A case that takes longer failed. Default: {LEAST_SECONDS / 60:.0f} minutes, more where a case is"
        f" expected to take over a {TIMES_THE_ESTIMATE}th of that.",
    )


def read_option(config: pytest.Config) -> float | None:
    """The limit that was typed.

    Raises:
        BadInputError: it is no number of seconds.
    """
    typed = config.getoption("perf_timeout")
    return None if typed is None else float(whole_number(typed, OPTION, "seconds"))


def give_limits(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """Give each of the cases ``items`` its limit: ours, pytest-timeout's, or the default."""
    chosen = read_option(config)
    # pytest-timeout's own option, of which 0 means no limit. Without pytest-timeout the watchdog alone is left.
    general = config.getoption("timeout", None) if chosen is None else None
    expected = forecast(config.stash[PLAN], TYPICAL_CPU)
    for item in items:
        default = max(LEAST_SECONDS, TIMES_THE_ESTIMATE * expected.get(item.name, 0.0))
        seconds = next((limit for limit in (chosen, general) if limit is not None), default)
        if seconds:
            item.stash[SECONDS] = seconds
        if general is None and config.pluginmanager.hasplugin("timeout"):
            item.add_marker(pytest.mark.timeout(seconds))


@contextmanager
def watched(item: pytest.Item) -> Iterator[None]:
    """Watch the case from outside of Python, if it has a limit."""
    if SECONDS not in item.stash:
        yield
        return
    faulthandler.dump_traceback_later(
        item.stash[SECONDS] + GRACE_SECONDS, exit=True, file=item.config.stash[JOURNAL].file
    )
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
