"""How often a strict job of unchanged code is green: `ab` of this commit with itself, again and again.

    python tests/strict_jobs.py run FILE       # hours: a job is added to FILE as it ends, and the same command goes on
    python tests/strict_jobs.py report FILE    # the table of docs/gate.md

Beside the jobs there are resampled ones, of the processes that the jobs have measured, drawn at random and ended by the
same rule, and such of at most five blocks, as `ab --budget 5` has, also with HEAD's rounds taken for longer. A job has
as long as one on CI has for each of the quick preset's four cases. Of jobs that ended by an earlier rule the file has
the processes alone, but that jobs from before a change took four blocks count as they ended; and those whose processes
had their models in one place are none of the twenty.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from perf_tests.ab.session import LEAST_BLOCKS, is_settled
from perf_tests.gate.thresholds import TIME
from perf_tests.gate.verdicts import Verdict
from perf_tests.measure.moving import PAIRS_PER_PLACE
from perf_tests.runs.records import Record
from tests.disturbances import COLUMNS, MEASURED_ON, ORDINARY, ROOT, beside, condense_case, judge, make_record

JOBS = 20
MINUTES = 45
BESIDE = ("calm", "one busy core")
RESAMPLED = 500
# Of fewer processes, resampled jobs would end for want of them.
LEAST_PROCESSES = 50
FEW_BLOCKS = 5
DELAYS = (0.03, 0.05)
GREEN, REGRESSED = {Verdict.PASS, Verdict.IMPROVED}, {Verdict.REGRESSED}
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
            if sum(job["beside"] == column and "pairs_per_place" in job for job in jobs) < number:
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
        "pairs_per_place": PAIRS_PER_PLACE,
        "processes": [condense_case(run) for run in runs],
    }


def report(jobs: Jobs) -> None:
    """Print the tables, in Markdown: what came of the jobs, and of resampled ones, by machine and day."""
    groups = {
        f"{column}, {measured}": [job for job in jobs if (job["beside"], when_and_where(job)) == (column, measured)]
        for measured in sorted({when_and_where(job) for job in jobs})
        for column in BESIDE
    }
    print("| beside | jobs | green | changes | minutes: least, median, most |\n|---|---|---|---|---|")
    for name, group in groups.items():
        own = [job for job in group if "verdict" in job]
        if own:
            changes, minutes = (sorted(job[key] for job in own) for key in ("change", "minutes"))
            print(
                f"| {name} | {len(own)} | {sum(job['exit_code'] == 0 for job in own)}"
                f" | {100 * changes[0]:+.1f} to {100 * changes[-1]:+.1f} %"
                f" | {minutes[0]:.0f}, {median(minutes):.0f}, {minutes[-1]:.0f} |"
            )
    of_five = "unchanged: REGRESSED | " + " | ".join(f"{100 * delay:g} % slower: found" for delay in DELAYS)
    print(f"\n| beside | processes | green | REGRESSED | AMBIGUOUS | blocks | {of_five} |")
    print(f"|{'---|' * (7 + len(DELAYS))}")
    for name, group in groups.items():
        processes = [make_record(run, MEASURED_ON) for job in group for run in job["processes"]]
        if len(processes) >= LEAST_PROCESSES:
            minutes_each = sum(job["minutes"] for job in group) / len(processes)
            ended = resample(processes, round(MINUTES / minutes_each / 2))
            shares = [share(ended, kind) for kind in (GREEN, REGRESSED, {Verdict.AMBIGUOUS})]
            few = [share(resample(processes, FEW_BLOCKS, delay), REGRESSED) for delay in (0.0, *DELAYS)]
            blocks = f"{median(job.blocks for job in ended):g}"
            print(f"| {name} | {len(processes)} | {' | '.join([*shares, blocks, *few])} |")


def when_and_where(job: Mapping[str, Any]) -> str:
    """The day of a job and its CPU, by name, family and model: on another CPU the noise is another one too.

    So it was where a process had its models in one place.
    """
    name, family, model = job["cpu"]
    place = "" if "pairs_per_place" in job else ", in one place"
    return f"{job['datetime'][:10]}, {name} {family}/{model}{place}"


class Resampled(NamedTuple):
    """A job that is made of processes: its verdict on time, after so many blocks of two."""

    verdict: Verdict | None
    blocks: int


def share(jobs: Sequence[Resampled], kind: Set[Verdict]) -> str:
    return f"{100 * sum(job.verdict in kind for job in jobs) / len(jobs):.1f} %"


def resample(processes: Sequence[Record], most: int, delay: float = 0.0, *, draws: int = RESAMPLED) -> list[Resampled]:
    """Jobs of up to ``most`` blocks of these processes, in which HEAD's rounds take longer by ``delay``."""
    rng = random.Random(0)
    return [make_job(rng.sample(processes, len(processes)), most, delay) for _ in range(draws)]


def make_job(processes: Sequence[Record], most: int, delay: float) -> Resampled:
    """A job that ends when it is settled, or after as many blocks as there may be, or are."""
    bases, heads = processes[::2], [slow_down(process, delay) for process in processes[1::2]]
    for blocks in range(LEAST_BLOCKS, min(most, len(heads)) + 1):
        found = judge(pool(bases[:blocks]), pool(heads[:blocks]))
        if is_settled(found.verdict or Verdict.AMBIGUOUS, found, blocks):
            break
    return Resampled(found.verdict, blocks)


def slow_down(process: Record, delay: float) -> Record:
    return process._replace(seconds=tuple((1 + delay) * second for second in process.seconds))


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
