"""What a section of the page consists of: texts, charts and tables, before they are HTML."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# A table's column-wise data for a chart: a list per column, or one value that holds for all rows.
Columns = Mapping[str, Any]


class Cell(NamedTuple):
    """A table's cell: what is shown, what it sorts by, where it leads, how it is marked (``good``, ``bad``, ``note``).

    ``choose`` makes it a button that chooses this entry in the section's charts.
    """

    text: str
    sort: float | str | None = None
    href: str | None = None
    mark: str = ""
    choose: str | None = None


class Table(NamedTuple):
    """A table that can be sorted and filtered. ``numeric`` are the columns whose cells are aligned as numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: frozenset[int] = frozenset()
    note: str = ""


class Chart(NamedTuple):
    """A Vega-Lite specification without data, and its ``rows``; ``None`` where the section's choice supplies them.

    ``needs`` is a column without which there is nothing to draw, for a choice that lacks it.
    """

    title: str
    spec: Mapping[str, Any]
    rows: Columns | None
    caption: str = ""
    wide: bool = False
    needs: str = ""


class Choice(NamedTuple):
    """One selector for all charts of a section that have no rows of their own.

    ``shared`` are columns by run, which a choice's column ``run`` points into; ``choices`` by label.
    """

    label: str
    choices: Mapping[str, Columns]
    shared: Columns | None = None


class Fact(NamedTuple):
    """A headline figure."""

    value: str
    label: str
    mark: str = ""


class Section(NamedTuple):
    """One section of the page; what it does not have is not shown. Each line of ``text`` is a paragraph."""

    id: str
    title: str
    text: str = ""
    facts: Sequence[Fact] = ()
    choice: Choice | None = None
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    mark: str = ""


def text_cell(value: object) -> Cell:
    """A cell of text that sorts as it reads."""
    return Cell(str(value), str(value))


def number_cell(text: str, value: float | None, mark: str = "") -> Cell:
    """A cell of a number; one that is missing is empty, and comes last."""
    return Cell(text, value, mark=mark)


def columns_of(rows: Sequence[Mapping[str, Any]], digits: int = 6) -> dict[str, Any]:
    """Rows as columns: numbers rounded to ``digits`` that count, a column of equal values as one value."""
    names = dict.fromkeys(name for row in rows for name in row)
    return compact({name: [row.get(name) for row in rows] for name in names}, digits)


def compact(columns: Mapping[str, Sequence[Any]], digits: int) -> dict[str, Any]:
    """Columns made small; ``length`` says how many rows there are where no column does."""
    small: dict[str, Any] = {}
    length = 0
    for name, values in columns.items():
        length = len(values)
        short = [_short(value, digits) for value in values]
        small[name] = short[0] if short and all(value == short[0] for value in short) else short
    return {"length": length, **small}


def _short(value: Any, digits: int) -> Any:
    if not isinstance(value, float):
        return value
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
