"""Histories for the report's tests: many runs of the same cases, with a step in flash's time where one is wanted."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from perf_tests.matrix.cases import Case
from tests.make_runs import CELL, make_run, slow_down

PAIR = (Case(*CELL, "original"), Case(*CELL, "flash"))
START = datetime(2026, 1, 1, tzinfo=UTC)


def commit_at(index: int) -> str:
    return hashlib.sha1(str(index).encode()).hexdigest()


def add_speedups(run: dict[str, Any]) -> None:
    """What the suite records of the pairs; the interval is made up."""
    for bench in run["benchmarks"]:
        control = bench["extra_info"]["control"]
        if control is not None:
            pairs = zip(control["rounds_seconds"], bench["stats"]["data"], strict=True)
            ratios = sorted(before / own for before, own in pairs)
            middle = ratios[len(ratios) // 2]
            bench["extra_info"]["speedup"] = {"median": middle, "low": 0.99 * middle, "high": 1.01 * middle}


def make_history(
    folder: Path,
    count: int,
    chosen: Sequence[Case] = PAIR,
    *,
    rounds: int = 20,
    step: tuple[int, float] | None = None,
    distinct: int = 1000,
) -> list[Path]:
    """Save `count` runs, an hour apart, as pytest-benchmark does; from run `step[0]` on flash takes `step[1]` as long.

    More than `distinct` runs repeat the rounds of earlier ones, so that many can be made in little time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts: dict[tuple[int, bool], str] = {}
    paths = []
    for index in range(count):
        slow = step is not None and index >= step[0]
        key = (index % distinct, slow)
        if key not in texts:
            run = make_run(chosen, seed=key[0], rounds=rounds, commit="COMMIT")
            run["datetime"] = "DATETIME"
            for case in chosen:
                if step is not None and slow and case.implementation == "flash":
                    slow_down(run, step[1], f"test_generate[{case.id}]")
            add_speedups(run)
            texts[key] = json.dumps(run, indent=4)
        commit, when = commit_at(index), (START + timedelta(hours=index)).isoformat()
        path = folder / f"{index + 1:04}_{commit}_20260101_000000.json"
        path.write_text(texts[key].replace('"COMMIT"', f'"{commit}"').replace('"DATETIME"', f'"{when}"'))
        paths.append(path)
    return paths
