"""How often a strict job of unchanged code is green: `ab` of this commit with itself, again and again.

    python tests/strict_jobs.py run FILE       # hours: a job is added to FILE as it ends, and the same command goes on
    python tests/strict_jobs.py report FILE    # the table of docs/gate.md

Beside the jobs the table has resampled ones: made of the processes that the jobs have measured, drawn at random, and
ended by the same rule. A job has as long as one on CI has for each of the quick preset's four cases.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from perf_tests.ab.session import LEAST_BLOCKS, is_settled
from perf_tests.gate.thresholds import TIME
from perf_tests.gate.verdicts import Finding, Verdict
from perf_tests.runs.records import Record
from tests.disturbances import COLUMNS, MEASURED_ON, ORDINARY, ROOT, beside, condense_case, judge, make_record

JOBS = 20
MINUTES = 45
BESIDE = ("calm", "one busy core")
RESAMPLED = 200
GREEN = {Verdict.PASS, Verdict.IMPROVED}
Jobs = list[dict[str, Any]]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    jobs: Jobs = json.loads(options.file.read_bytes()) if options.file.exists() else []
    if options.command == "run":
        run_jobs(jobs, options.file.resolve())
    report(jobs)


def run_jobs(jobs: Jobs, file: Path) -> None:
    """Run what is missing of the jobs, calm and disturbed ones in turn."""
    for number in range(1, JOBS + 1):
        for column in BESIDE:
            if sum(job["beside"] == column for job in jobs) < number:
                with beside(COLUMNS[column].others):
                    jobs.append({"beside": column, **run_job()})
                file.write_text("[\n" + ",\n".join(map(json.dumps, jobs)) + "\n]\n", encoding="utf-8")
                print({key: value for key, value in jobs[-1].items() if key != "processes"}, flush=True)


def run_job() -> dict[str, Any]:
    """One job: what came of it, after how many minutes, on which CPU, and what its processes measured."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        kept, verdicts = Path(folder, "session"), Path(folder, "verdicts.json")
        command = [sys.executable, "-m", "perf_tests", "ab", ".", ".", "--same", "--strict", f"--budget={MINUTES}"]
        command += ["--json", str(verdicts), "--keep", str(kept), "--", *ORDINARY, "-k", "tiny.en-2-single"]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        report = json.loads(verdicts.read_bytes())
        runs = [json.loads(path.read_bytes()) for path in sorted(kept.glob("*-control-*.json"))]
    (case,) = report["cases"]
    found = next(metric for metric in case["metrics"] if metric["metric"] == TIME)
    machine = runs[0]["machine_info"]
    return {
        "exit_code": report["exit_code"],
        "verdict": case["verdict"],
        **{key: round(found[key], 4) for key in ("change", "low", "high", "allowed")},
        "minutes": round((time.monotonic() - start) / 60, 1),
        "datetime": runs[0]["datetime"],
        "cpu": [machine["cpu"][key] for key in ("brand_raw", "family", "model")],
        "package_hash": machine["package_hash"],
        "processes": [condense_case(run) for run in runs],
    }


def report(jobs: Sequence[Mapping[str, Any]]) -> None:
    """Print the table, in Markdown."""
    print("| beside | jobs | green | changes | minutes: least, median, most | resampled: green, REGRESSED, AMBIGUOUS |")
    print("|---|---|---|---|---|---|")
    for column in BESIDE:
        own = [job for job in jobs if job["beside"] == column]
        if not own:
            continue
        green = sum(job["exit_code"] == 0 for job in own)
        changes, minutes = (sorted(job[key] for job in own) for key in ("change", "minutes"))
        found = resample(own)
        shares = [sum(verdict in kind for verdict in found) / len(found) for kind in (GREEN, {Verdict.REGRESSED})]
        print(
            f"| {column} | {len(own)} | {green} | {100 * changes[0]:+.1f} to {100 * changes[-1]:+.1f} %"
            f" | {minutes[0]:.0f}, {median(minutes):.0f}, {minutes[-1]:.0f}"
            f" | {', '.join(f'{100 * share:.1f} %' for share in (*shares, 1 - sum(shares)))} |"
        )


def resample(jobs: Sequence[Mapping[str, Any]]) -> list[Verdict | None]:
    """The verdicts of jobs that are made of these jobs' processes."""
    processes = [make_record(run, MEASURED_ON) for job in jobs for run in job["processes"]]
    minutes_each = sum(job["minutes"] for job in jobs) / len(processes)
    rng = random.Random(0)
    return [
        make_job(rng.sample(processes, len(processes)), round(MINUTES / minutes_each / 2)) for _ in range(RESAMPLED)
    ]


def make_job(processes: Sequence[Record], most_blocks: int) -> Verdict | None:
    """The verdict on time after as many blocks of two processes as it takes to settle, or as there are."""
    found: Finding | None = None
    for blocks in range(LEAST_BLOCKS, min(most_blocks, len(processes) // 2) + 1):
        found = judge(pool(processes[: 2 * blocks : 2]), pool(processes[1 : 2 * blocks : 2]))
        if is_settled(found.verdict or Verdict.AMBIGUOUS, found):
            break
    return found.verdict if found is not None else None


def pool(processes: Sequence[Record]) -> Record:
    """The rounds of several processes as one record."""
    first = processes[0]
    assert first.yardstick is not None
    parts = {
        name: tuple(second for each in processes if each.yardstick for second in each.yardstick.seconds[name])
        for name in first.yardstick.seconds
    }
    return first._replace(
        seconds=sum((each.seconds for each in processes), ()),
        control_seconds=sum((each.control_seconds for each in processes), ()),
        yardstick=first.yardstick._replace(seconds=parts),
        meanwhile=sum((each.meanwhile for each in processes), ()),
        process_rounds=tuple(len(each.seconds) for each in processes),
    )


if __name__ == "__main__":
    main()
