"""``python -m perf_tests report [RUN…]``: tables in Markdown, and a page with charts and history.

Exit codes: 0 where a report was made, whatever its figures say; 2 where it could not be.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perf_tests.common.cli import make_parser, run_command
from perf_tests.common.errors import BadInputError
from perf_tests.common.files import write_file
from perf_tests.common.text import clean, count_of
from perf_tests.runs.references import FORMS, add_storage, storage_path

from .commits import PLACEHOLDER, check_template, find_template
from .gathering import Found, Gathered, find, gather

if TYPE_CHECKING:
    from .content import Section


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    return run_command("report", lambda: _report(_parse(arguments)))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser("report", "Make tables and a page of saved runs: the newest of each machine, and the history.")
    add_storage(parser)
    parser.epilog = (
        "Of two runs, BASE and then HEAD, the page shows the gate's verdict. Runs of several machines get a part each."
        " Without --html, --markdown and --readme, the Markdown goes to standard output."
    )
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help=f"{FORMS}; or a folder of runs (default: all of --storage)")
    add("--html", type=Path, metavar="FILE", help="write the page: one file that needs no network")
    add("--markdown", type=Path, metavar="FILE", help="write the tables")
    add("--readme", type=Path, metavar="FILE", help="write the tables between the markers of this file")
    add(
        "--commit-url",
        metavar="URL",
        help=f"where a commit is to be seen, with {PLACEHOLDER} in it (default: from the checkout's remote)",
    )
    return parser.parse_args(arguments)


def _report(options: argparse.Namespace) -> int:
    template = check_template(options.commit_url) if options.commit_url else None
    found = find(options.runs, storage_path(options.storage))
    _check_outputs([path for path in (options.html, options.markdown, options.readme) if path], found)
    gathered = gather(found)
    for note in gathered.notes:
        print(f"perf_tests report: left out: {clean(note, 2000)}", file=sys.stderr)
    from .markdown import to_markdown

    if options.html is not None:
        from .page import render_page

        page = render_page(gathered, _verdict(gathered), template or find_template())
        write_file(options.html, page.encode())
    if options.markdown is not None:
        write_file(options.markdown, f"{to_markdown(gathered.machines).rstrip()}\n".encode())
    if options.readme is not None:
        from .readme import update_readme

        update_readme(options.readme, gathered.machines)
    written = [path for path in (options.html, options.markdown, options.readme) if path]
    if written:
        what = f"{count_of(len(gathered.paths), 'run')} of {count_of(len(gathered.machines), 'machine')}"
        print(f"{what}: {', '.join(clean(path) for path in written)}")
    else:
        print(to_markdown(gathered.machines).rstrip())
    return 0


def _verdict(gathered: Gathered) -> "Section | None":
    """The gate's verdict, where there are two runs: BASE and HEAD."""
    if len(gathered.paths) != 2:
        return None
    from perf_tests.gate.comparison import compare_runs
    from perf_tests.gate.config import find_config, read_config
    from perf_tests.gate.thresholds import Rules
    from perf_tests.report.sections import verdict
    from perf_tests.runs.saved import read_run

    try:
        base, head = (read_run(one.path, one.name) for one in gathered.paths)
        config = read_config(find_config())
        rules = Rules(patterns=config.thresholds, accepted=config.accepted)
        return verdict.build(compare_runs(base, head, rules), _labels(gathered))
    except BadInputError as error:
        return verdict.refused(str(error))


def _labels(gathered: Gathered) -> dict[str, str]:
    """Short names of flash's cases, which are those that have a verdict on time."""
    from .rows import rows_of

    rows = [row for machine in gathered.machines for row in rows_of(machine.shown)]
    return {row.cases["flash"].id: row.label for row in rows if "flash" in row.cases}


def _check_outputs(outputs: Sequence[Path], runs: Sequence[Found]) -> None:
    """A slip of the keyboard must not cost a run.

    Raises:
        BadInputError: an output is one of the runs, a folder, or another output too.
    """
    read = {one.path.resolve() for one in runs}
    for path in outputs:
        if path.is_dir():
            raise BadInputError(f"{clean(path)}: a folder; give a file to write to")
        if path.resolve() in read:
            raise BadInputError(f"{clean(path)}: one of the runs; write the report somewhere else")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise BadInputError("--html, --markdown and --readme: the same file twice")
