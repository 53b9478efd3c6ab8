"""The part of a README that the report writes: what stands between two markers, and nothing else."""

from collections.abc import Sequence
from pathlib import Path

from perf_tests.common.errors import BadInputError
from perf_tests.common.files import write_file
from perf_tests.common.text import clean

from .gathering import Machine
from .markdown import to_markdown

START = "<!-- results: written by `python -m perf_tests report results --readme README.md`; edit nothing here -->"
END = "<!-- end of results -->"


def update_readme(path: Path, machines: Sequence[Machine]) -> None:
    """Replace what stands between the markers in ``path``.

    Raises:
        BadInputError: it cannot be read or written, or does not have each marker once, in their order.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadInputError(f"{clean(path)}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    write_file(path, replace_section(text, machines, clean(path)).encode())


def replace_section(text: str, machines: Sequence[Machine], name: str) -> str:
    """``text`` with the section made anew.

    Raises:
        BadInputError: the markers are not there, each once and in their order.
    """
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise BadInputError(f"{name}: it needs these two lines, each once, with the results between: {START} and {END}")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{to_markdown(machines, level=3).rstrip()}\n\n{END}{after}"
