"""``python -m perf_tests ci``: the steps of the GPU job, the same here as there.

``measure`` looks at the machine, then measures base against head and leaves everything in a folder. ``report`` puts
the folders of one GPU model's shards together into one comparison. Exit codes are ``compare``'s, and 0 with
``--only-changed`` where both commits have the same package.
"""

import argparse
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from perf_tests.ab import command as ab
from perf_tests.ab.trees import check_packages, find_repository, find_revision
from perf_tests.common.cli import make_parser, option_value, run_command, split_arguments
from perf_tests.common.errors import COULD_NOT_JUDGE, BadInputError
from perf_tests.common.files import write_file
from perf_tests.common.package_hash import SamePackageError
from perf_tests.common.text import clean, escape_markdown
from perf_tests.gate import command as compare
from perf_tests.report import command as report
from perf_tests.runs import merge

from .machine_check import describe_host, look_at_gpu
from .revisions import NOTE, Base, choose_base

UNCHANGED = "UNCHANGED"
VERDICTS, REPORT, PAGE = "verdicts.json", "report.md", "page.html"
SIDES = ("base.json", "head.json")
WAIT_MINUTES = "120"
MOST_SHARDS = 64


def main(arguments: list[str]) -> int:
    """Run a step; return its exit code."""
    steps = {"measure": _measure, "report": _report, "counters": _counters}
    if not arguments or arguments[0] not in steps:
        print(f"perf_tests ci: give one of {', '.join(steps)}", file=sys.stderr)
        return 2
    step = steps[arguments[0]]
    return run_command(f"ci {arguments[0]}", lambda: step(arguments[1:]))


def _measure(arguments: list[str]) -> int:
    own, pytest_arguments = split_arguments(arguments)
    parser = make_parser("ci measure", "Look at the machine, then measure BASE against HEAD; leave all in a folder.")
    add_commits(parser)
    add = parser.add_argument
    add("--shard", default="1", metavar="I", help="measure this part of the cases, counted from 1")
    add_shards(parser)
    add("--budget", default="", metavar="MINUTES", help="of `ab`")
    add("--processes", default="", metavar="N", help="of `ab`")
    add_strict(parser)
    options = parser.parse_args(own)

    def measure(base: Base) -> int:
        suite = suite_arguments(options)
        check_machine(device_of(pytest_arguments))
        code = _run_ab(base, options, [*suite, *pytest_arguments])
        make_page(options.out)
        return code

    return _judge(options, measure)


def _counters(arguments: list[str]) -> int:
    own, pytest_arguments = split_arguments(arguments)
    parser = make_parser("ci counters", "Count what BASE and HEAD do, exactly and without timing; compare.")
    add_commits(parser)
    options = parser.parse_args(own)

    def count(base: Base) -> int:
        from .counters import count_sides

        count_sides(base.commit, options.head, options.out, [*selection(options), *pytest_arguments])
        return _compare(options.out, *_note(base.note))

    return _judge(options, count)


def _judge(options: argparse.Namespace, compare: Callable[[Base], int]) -> int:
    """Choose the base and compare with it; where that comes to nothing, leave a report that says why."""
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    try:
        base = choose_base(options.base, options.head, fork_point=options.fork_point)
        try:
            check_sides(base.commit, options.head)
        except SamePackageError as error:
            if not options.only_changed:
                raise
            return leave_unchanged(out, [*filter(None, [base.note]), str(error)])
        return compare(base)
    except BadInputError as error:
        refuse(out, str(error))
        raise


def check_sides(base: str, head: str) -> None:
    """Refuse two sides with one package.

    Raises:
        BadInputError: as ``check_packages``, or there is no such commit.
    """
    repository = find_repository(Path.cwd())
    check_packages(repository, *(find_revision(repository, asked) for asked in (base, head)))


def add_commits(parser: argparse.ArgumentParser) -> None:
    """Add what is compared, and where the result goes."""
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the folder for runs, verdicts, report and page")
    add("--base", default="", metavar="REV", help="default: HEAD's branch a day ago")
    add("--head", default=".", metavar="REV", help="default: the working tree")
    add("--fork-point", action="store_true", help="compare with the commit in which HEAD left BASE (a pull request)")
    text = "where both have the same package, measure nothing, say so and end with 0 (default: that is refused)"
    add("--only-changed", action="store_true", help=text)
    add("--preset", default="", metavar="NAME", help="--perf-preset of the suite")
    add("--filter", default="", metavar="EXPRESSION", help="-k of pytest")


def device_of(pytest_arguments: Sequence[str]) -> str:
    """What the cases of this job run on, where there is a GPU: the suite's own default is the first one."""
    return option_value(pytest_arguments, "--perf-device") or "cuda"


def selection(options: argparse.Namespace) -> list[str]:
    """Pytest's options for the cases that were asked for."""
    preset = [f"--perf-preset={options.preset}"] if options.preset else []
    return preset + ([f"-k={options.filter}"] if options.filter else [])


def check_machine(device: str) -> None:
    """Print the state of the host, and of the GPU that this job will measure on.

    Raises:
        BadInputError: that GPU is not free, or hot.
    """
    print(describe_host(), flush=True)  # before what the processes to come print
    gpu = look_at_gpu(device) if device.startswith("cuda") else None
    if gpu is None:
        print("no GPU to look at", flush=True)
        return
    print(gpu.describe(), flush=True)
    if problems := gpu.problems():
        raise BadInputError("; ".join(problems))


def suite_arguments(options: argparse.Namespace) -> list[str]:
    """The pytest options of a job.

    Raises:
        BadInputError: a shard that cannot be.
    """
    total = count_shards(options.shards)
    if not re.fullmatch(r"[0-9]{1,3}", options.shard) or not 1 <= int(options.shard) <= total:
        raise BadInputError(f"--shard: {clean(options.shard, 20)!r} is none of 1 to {total}")
    arguments = ["--perf-wait", WAIT_MINUTES, *selection(options)]
    if total > 1:
        arguments += ["--splits", str(total), "--group", options.shard]
    return arguments


def add_shards(parser: argparse.ArgumentParser) -> None:
    text = "how many parts there are: a number, or all of them as JSON, [1, 2, 3] (default: 1)"
    parser.add_argument("--shards", default="1", metavar="N", help=text)


def add_strict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strict", action="store_true", help="what could not be judged ends with 1 too")


def count_shards(text: str) -> int:
    """How many parts ``--shards`` means.

    Raises:
        BadInputError: it is neither a number nor the list of the first numbers.
    """
    try:
        shards = json.loads(text)
    except ValueError:
        shards = None
    total = len(shards) if isinstance(shards, list) else shards
    listed = not isinstance(shards, list) or shards == [*range(1, len(shards) + 1)]
    if isinstance(total, bool) or not isinstance(total, int) or not 1 <= total <= MOST_SHARDS or not listed:
        raise BadInputError(f"--shards: {clean(text, 40)!r} is neither a number nor [1, 2, …]")
    return total


def refuse(out: Path, why: str) -> None:
    """Leave a report of a job that came to nothing: no verdict is not a good one."""
    _leave(out, "REFUSED", COULD_NOT_JUDGE, "Could not judge", [why])


def leave_unchanged(out: Path, why: Sequence[str]) -> int:
    """Leave a report that says that nothing was measured, since nothing has changed; return the exit code."""
    _leave(out, UNCHANGED, 0, "Nothing to compare", why)
    return 0


def _leave(out: Path, verdict: str, code: int, title: str, lines: Sequence[str]) -> None:
    notes = [clean(line, 2000) for line in lines]
    document = {"verdict": verdict, "exit_code": code, "notes": notes, "cases": []}
    write_file(out / VERDICTS, (json.dumps(document, indent=2) + "\n").encode())
    write_file(out / REPORT, "\n\n".join([f"### {title}", *map(escape_markdown, lines), ""]).encode())
    _show_report(out)


def make_page(out: Path) -> None:
    """Tables and plots of both runs as a page; a page that fails takes no verdict with it."""
    runs = [str(out / side) for side in SIDES if (out / side).exists()]
    if runs and _run(report.main, *runs, "--html", str(out / PAGE)) != 0:
        print("ci: the page could not be made; verdicts and report stand", file=sys.stderr)


def _run_ab(base: Base, options: argparse.Namespace, pytest_arguments: list[str]) -> int:
    out = options.out
    command = [base.commit, options.head, "--json", str(out / VERDICTS), "--markdown", str(out / REPORT)]
    command += ["--keep", str(out), *_note(base.note)]
    for name in ("budget", "processes"):
        if getattr(options, name):
            command += [f"--{name}", getattr(options, name)]
    command += ["--strict"] if options.strict else []
    for name in (VERDICTS, REPORT, PAGE, *SIDES):
        (out / name).unlink(missing_ok=True)  # another job's, and no answer where this one comes to nothing
    code = _run(ab.main, *command, "--", *pytest_arguments)
    if not (out / VERDICTS).exists() or not (out / REPORT).exists():
        refuse(out, f"the measurement ended with exit code {code} and no verdict; see the job's log")
        return code or COULD_NOT_JUDGE
    _show_report(out)
    return code


def _report(arguments: list[str]) -> int:
    parser = make_parser("ci report", "Put the shards of one GPU model together into one comparison.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for the result")
    add_shards(parser)
    add_strict(parser)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of the folders that `ci measure` left")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        folders = sorted(options.folder.iterdir()) if options.folder.is_dir() else []
        return join_shards(folders, count_shards(options.shards), options.out, strict=options.strict)
    except BadInputError as error:
        refuse(options.out, str(error))
        raise


def join_shards(folders: list[Path], expected: int, out: Path, *, strict: bool = False) -> int:
    """Merge both sides of all shards and compare them; a single shard has its verdict already, and so have unchanged.

    Raises:
        BadInputError: a shard is missing: the cases that it had are missing on both sides, and no verdict would tell;
            or it was of other commits.
    """
    present = [folder for folder in folders if (folder / VERDICTS).is_file()]
    if len(present) != expected:
        raise BadInputError(f"{len(present)} of {expected} shards brought a result; see the jobs of the others")
    reports = [_read_report(folder) for folder in present]
    unchanged = [folder for folder, report in zip(present, reports, strict=True) if report.verdict == UNCHANGED]
    if unchanged and len(unchanged) < expected:
        raise BadInputError(f"{clean(unchanged[0].name)}: nothing to compare, unlike in others; see the jobs' reports")
    if expected == 1 or unchanged:
        for name in (VERDICTS, REPORT, PAGE, *SIDES):
            if (present[0] / name).is_file():
                shutil.copyfile(present[0] / name, out / name)
        _show_report(out)
        return reports[0].exit_code
    for side in SIDES:
        missing = [folder for folder in present if not (folder / side).is_file()]
        if missing:
            raise BadInputError(f"{clean(missing[0].name)}: no {side}; see that job's report")
        (out / side).unlink(missing_ok=True)
        code = _run(merge.main, str(out / side), *(str(folder / side) for folder in present))
        if code:
            raise BadInputError(f"{side}: the shards cannot be merged")
    code = _compare(out, *_note(reports[0].base_note), *(["--strict"] if strict else []))
    make_page(out)
    return code


class _Report(NamedTuple):
    """What counts of a shard's report; ``base_note`` says how its base was chosen."""

    verdict: object
    exit_code: int
    base_note: str


def _read_report(folder: Path) -> _Report:
    """The shard's.

    Raises:
        BadInputError: it is broken.
    """
    try:
        report = json.loads((folder / VERDICTS).read_bytes())
        notes = [note for note in map(str, report.get("notes", [])) if note.startswith(NOTE)]
        return _Report(report["verdict"], int(report["exit_code"]), clean(notes[0]) if notes else "")
    except (ValueError, TypeError, LookupError, AttributeError):
        raise BadInputError(f"{clean(folder.name)}: {VERDICTS} is broken; see that job's log") from None


def _compare(out: Path, *arguments: str) -> int:
    """Compare the runs in ``out``."""
    outputs = ["--json", str(out / VERDICTS), "--markdown", str(out / REPORT)]
    (out / REPORT).unlink(missing_ok=True)
    code = _run(compare.main, *(str(out / side) for side in SIDES), *outputs, *arguments)
    if (out / REPORT).exists():
        _show_report(out)
    else:
        refuse(out, "the runs could not be compared; see the job's log")
    return code


def _note(line: str) -> list[str]:
    """The option that gives the gate's report a line, if there is one."""
    return [f"--note={line}"] if line else []


def _run(command: Callable[[list[str]], int], *arguments: str) -> int:
    """Another command; one that breaks down takes no report of this job with it."""
    try:
        return command([*arguments])
    except Exception:
        traceback.print_exc()
        return COULD_NOT_JUDGE


def _show_report(out: Path) -> None:
    """Add the report to the job's summary, where there is one."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write((out / REPORT).read_text(encoding="utf-8") + "\n")
