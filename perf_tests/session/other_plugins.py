"""What other plugins and options would take from a run: its timing, its saving, or that each case runs once, here."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

import pytest

from perf_tests.gate import fail_on
from perf_tests.matrix.cases import Case
from perf_tests.matrix.options import TEST_FILES

SAVING = ("--benchmark-save", "--benchmark-autosave", "--benchmark-json")


def is_worker(config: pytest.Config) -> bool:
    """Whether this is a process that pytest-xdist started."""
    return hasattr(config, "workerinput")


def refuse_workers(ids: Iterable[str]) -> None:
    """Refuse cases that pytest-xdist would hand out to its workers, by their node ids.

    Raises:
        pytest.UsageError: there is one.
    """
    if any(PurePosixPath(name.partition("::")[0]).parent.name == TEST_FILES for name in ids):
        raise pytest.UsageError(
            "pytest-xdist: cases that run side by side slow each other, and nothing of theirs is saved; leave out -n,"
            f" or {TEST_FILES}/ from this session"
        )


def check_session(config: pytest.Config, cases: Sequence[pytest.Item]) -> None:
    """Refuse what would leave nothing to save, or more than one measurement of a case.

    Raises:
        pytest.UsageError: with what to leave out.
    """
    if not hasattr(config, "_benchmarksession"):
        raise pytest.UsageError("the cases are measured by pytest-benchmark: leave out -p no:benchmark")
    idle, saving = why_idle(config), _saving(config)
    if idle is not None and saving is not None:
        raise pytest.UsageError(f"{idle}: nothing is timed, and {saving} saves what was; leave one of the two out")
    for (name, *_), count in Counter(map(_identity, cases)).items():
        if count > 1:
            raise pytest.UsageError(
                f"{name}: selected {count} times, and a run has each case once; leave out what repeats it (--count,"
                " --flake-finder, --keep-duplicates), and give --perf-rounds for more rounds"
            )


def why_idle(config: pytest.Config) -> str | None:
    """The option for which cases run untimed, or not at all."""
    benchmarks: Any = config._benchmarksession  # type: ignore[attr-defined]  # pytest-benchmark's, on purpose
    option = config.option
    found = {
        "--setup-plan": option.setupplan,
        "--setup-only": option.setuponly,
        "--benchmark-disable": benchmarks.disabled,
        "--benchmark-skip": benchmarks.skip,
    }
    return next((name for name, given in found.items() if given), None)


def _saving(config: pytest.Config) -> str | None:
    """The option that asks for a saved run; the gate's first, since it sees to it that the run is saved."""
    names = (fail_on.OPTION, *SAVING)
    return next((name for name in names if config.getoption(name.lstrip("-").replace("-", "_"))), None)


def _identity(item: pytest.Item) -> tuple[object, ...]:
    """The case that an item is, whatever another plugin has put behind its name."""
    name = getattr(item, "originalname", item.name)
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    case = [str(params[field]) for field in Case._fields if field in params]
    return (f"{name}[{'-'.join(case)}]" if len(case) == len(Case._fields) else item.name, item.path)
