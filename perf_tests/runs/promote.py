"""``python -m perf_tests promote RUN NAME``: make a run the baseline called NAME, on purpose."""

import argparse

from perf_tests.common.cli import make_parser, run_command
from perf_tests.common.errors import BadInputError
from perf_tests.common.files import write_file
from perf_tests.common.text import clean, count_of

from .document import parse_document, read_bytes
from .references import FORMS, add_storage, locate, storage_path
from .saved import parse_run
from .store import baseline_path, check_store, keep_old


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    return run_command("promote", lambda: _promote(_parse(arguments)))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser("promote", "Copy a saved run to $PERF_STORE as the baseline called NAME.")
    add_storage(parser)
    parser.add_argument("run", metavar="RUN", help=FORMS)
    parser.add_argument("name", metavar="NAME", help="what to call it; the baseline of that name until now is kept")
    return parser.parse_args(arguments)


def _promote(options: argparse.Namespace) -> int:
    target = baseline_path(options.name)
    check_store()
    found = locate(options.run, storage_path(options.storage))
    content = read_bytes(found.path)
    run = parse_run(parse_document(content, found.path), found.name)
    if run.plain:
        raise BadInputError(f"{clean(found.name)}: plain pytest-benchmark without the suite's keys is no baseline")
    if not any(record.ran for record in run.records.values()):
        raise BadInputError(f"{clean(found.name)}: no case passed, so there is nothing to compare with")
    old = keep_old(target)
    write_file(target, content)
    print(f"baseline {options.name}: {run.describe()}")
    unusable = sum(not record.ran for record in run.records.values())
    if unusable:
        print(f"note: {count_of(unusable, 'case')} of it did not pass, and will be NEW when they do")
    if run.dirty:
        print("note: it was measured with uncommitted changes")
    if old is not None:
        print(f"the one until now is {clean(old)}")
    return 0
