"""pytest plugin for ``--perf-counters-only``: what was counted without timing gets into the run's JSON.

pytest-benchmark knows no benchmark without rounds, and a made-up round would be a lie. So these cases stand beside its
``benchmarks``, under the top-level key ``perf_counted``, as the same records without ``stats``; its own commands then
see a run without benchmarks.
"""

from collections.abc import Generator, Iterable
from typing import Any

import pytest

from .journal import COUNTED, JOURNAL, Entry
from .options import PLAN, is_perf_item

RECORD = ("group", "name", "fullname", "params", "param", "extra_info")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the record of a case that was counted, while its fixtures are there."""
    report = yield
    if report.when == "call" and report.passed and is_perf_item(item) and item.config.stash[PLAN].counters_only:
        benchmark = (getattr(item, "funcargs", None) or {}).get("benchmark")
        item.stash[COUNTED] = {name: getattr(benchmark, name) for name in RECORD}
    return report


@pytest.hookimpl(optionalhook=True, trylast=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add ``perf_counted``, where anything was counted; after the journal, whose records may be of either kind."""
    counted = counted_records(config.stash[JOURNAL].entries.values()) if JOURNAL in config.stash else []
    if counted:
        output_json["benchmarks"] = [bench for bench in output_json["benchmarks"] if "stats" in bench]
        output_json["perf_counted"] = counted


def counted_records(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The records of the cases that were counted without timing."""
    records = (entry.benchmark for entry in entries if entry.benchmark is not None)
    return [record for record in records if "stats" not in record]
