"""``python -m perf_tests merge OUT RUN…``: shards of one run into one; or what a journal has of one."""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from perf_tests.common.cli import make_parser, run_command
from perf_tests.common.errors import BadInputError
from perf_tests.common.files import write_file
from perf_tests.common.text import clean, count_of

from .document import read_bytes
from .fingerprint import differences
from .references import FORMS, Located, add_storage, locate, storage_path
from .saved import Run, parse_run, read_run


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    return run_command("merge", lambda: _merge(_parse(arguments)))


def merge_runs(runs: list[Run]) -> dict[str, Any]:
    """One run with the cases of all: machine, commit and date are the first one's, limits the first measured ones.

    Raises:
        BadInputError: a run is plain, the machines or commits differ, or a case is in two runs.
    """
    first = runs[0]
    seen: dict[str, Run] = {}
    for run in runs:
        if run.plain:
            raise BadInputError(f"{clean(run.name)}: plain pytest-benchmark without the suite's keys")
        for case_id in run.records:
            if case_id in seen:
                names = f"{clean(seen[case_id].name)} and {clean(run.name)}"
                raise BadInputError(f"{clean(case_id)}: both in {names}; shards have no case in common")
            seen[case_id] = run
    for one, other in pairwise(runs):
        names = f"{clean(one.name)} and {clean(other.name)}"
        unlike = differences(one.machine_info, other.machine_info)
        if unlike:
            raise BadInputError(f"{names}: unlike machines: {', '.join(map(str, unlike))}")
        if (one.commit, one.dirty) != (other.commit, other.dirty):
            raise BadInputError(f"{names}: made of different commits, {_commit(one)} and {_commit(other)}")
    entries: list[dict[str, Any]] = []
    sessions: list[dict[str, Any]] = []
    for run in runs:
        entries += [
            entry | {"session": None if entry["session"] is None else entry["session"] + len(sessions)}
            for entry in run.document["perf_cases"]
        ]
        sessions += run.document.get("perf_sessions", [])
    limits = next((found for run in runs if (found := run.machine_info.get("limits"))), None)
    return {
        **first.document,
        "machine_info": {**first.document["machine_info"], "limits": limits},
        "benchmarks": [bench for run in runs for bench in run.document["benchmarks"]],
        "perf_cases": entries,
        "perf_sessions": sessions,
    }


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser("merge", "Merge shards of one run into one.")
    add_storage(parser)
    parser.epilog = (
        "A RUN may also be the journal (journal_*.jsonl) of one that was cut short: what it has becomes a run, of which"
        " the other cases were not run."
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write; it must not exist")
    parser.add_argument("runs", nargs="+", metavar="RUN", help=FORMS)
    return parser.parse_args(arguments)


def _merge(options: argparse.Namespace) -> int:
    if options.out.exists():
        raise BadInputError(f"{clean(options.out)}: exists already; OUT comes first and must be a new file")
    found = [locate(reference, storage_path(options.storage)) for reference in options.runs]
    runs = [_read(shard) for shard in found]
    document = merge_runs(runs)
    write_file(options.out, (json.dumps(document, indent=4) + "\n").encode())
    count = count_of(sum(len(run.records) for run in runs), "case")
    print(f"{clean(options.out)}: {count} of {count_of(len(runs), 'run')}")
    return 0


def _read(shard: Located) -> Run:
    if shard.path.suffix != ".jsonl":
        return read_run(shard.path, shard.name, timed=False)
    from .journals import read_journal

    read_bytes(shard.path)
    past = read_journal(shard.path)
    if past is None:
        raise BadInputError(f"{clean(shard.path)}: not a journal of this version of the suite")
    return parse_run(past.to_run(), shard.name, timed=False)


def _commit(run: Run) -> str:
    return f"{clean(run.commit, 12)}{' with uncommitted changes' if run.dirty else ''}"
