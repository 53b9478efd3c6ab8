"""What `ab` makes of processes that were measured: those of `tests/strict_jobs.py`, on a quiet day and a noisy one."""

import json
from pathlib import Path

import pytest

from perf_tests.gate.verdicts import Verdict
from perf_tests.runs.records import Record
from tests.disturbances import MEASURED_ON, make_record
from tests.strict_jobs import FEW_BLOCKS, Resampled, resample, when_and_where

QUIET, NOISY = (f"2026-11-{day}, AMD EPYC 25/17, in one place" for day in (29, 30))
# As many as 45 minutes have on these machines.
MOST_BLOCKS = 46
DRAWS = 100


@pytest.fixture(scope="module", params=[QUIET, NOISY])
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
    few = {delay: resample(processes, FEW_BLOCKS, delay, draws=DRAWS) for delay in (0.0, 0.03, 0.05)}
    found = {delay: count(jobs, Verdict.REGRESSED) for delay, jobs in few.items()}
    assert found[0.0] <= 0.03 * DRAWS
    assert found[0.03] >= (0.7 if measured == QUIET else 0.25) * DRAWS
    assert found[0.05] >= (0.98 if measured == QUIET else 0.6) * DRAWS
