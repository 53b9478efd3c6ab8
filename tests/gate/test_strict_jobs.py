"""What `ab` makes of processes that were measured: those of `tests/strict_jobs.py`, on quiet days and noisy ones."""

import json
from pathlib import Path

import pytest

from perf_tests.gate.verdicts import Verdict
from perf_tests.runs.records import Record
from tests.disturbances import MEASURED_ON, make_record
from tests.strict_jobs import FEW_BLOCKS, Resampled, resample, when_and_where

# On which day and machine: at least how often five blocks find what is 3 and 5 % slower. The first day was quiet, and
# models move on in memory on the last one.
FOUND = {
    "2026-11-29, AMD EPYC 25/17, in one place": (0.7, 0.98),
    "2026-11-30, AMD EPYC 25/17, in one place": (0.25, 0.6),
    "2026-11-30, AMD EPYC 25/17": (0.35, 0.75),
}
# As many as 45 minutes have on these machines.
MOST_BLOCKS = 46
DRAWS = 100


@pytest.fixture(scope="module", params=FOUND)
def measured(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def processes(measured: str) -> list[Record]:
    """Those of the calm jobs of a day on a machine."""
    jobs = json.loads(Path(__file__).with_name("strict_jobs.json").read_bytes())
    own = [job for job in jobs if job["beside"] == "calm" and when_and_where(job) == measured]
    return [make_record(run, MEASURED_ON) for job in own for run in job["processes"]]


def count(jobs: list[Resampled], *verdicts: Verdict) -> int:
    return sum(job.verdict in verdicts for job in jobs)


def test_strict_jobs_of_unchanged_code_are_green(processes: list[Record]) -> None:
    jobs = resample(processes, MOST_BLOCKS, draws=DRAWS)
    assert count(jobs, Verdict.PASS, Verdict.IMPROVED) >= 0.95 * DRAWS


def test_five_blocks_find_what_is_slower_as_often_as_the_noise_allows(measured: str, processes: list[Record]) -> None:
    of_three, of_five = FOUND[measured]
    few = {delay: resample(processes, FEW_BLOCKS, delay, draws=DRAWS) for delay in (0.0, 0.03, 0.05)}
    found = {delay: count(jobs, Verdict.REGRESSED) for delay, jobs in few.items()}
    assert found[0.0] <= 0.03 * DRAWS
    assert found[0.03] >= of_three * DRAWS
    assert found[0.05] >= of_five * DRAWS
