"""What the page's charts have in common: scales, axes and data by name. The drawing is Vega-Lite's, by way of Altair.

Colours are the page's CSS variables, so that a chart follows the reader's light or dark mode, and paper. They are
those of Okabe and Ito's palette, which colour-blind readers tell apart; shapes say the same once more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from perf_tests.matrix.cases import IMPLEMENTATIONS

from .content import Chart, columns_of

ROWS = "rows"
SHAPES = {"original": "circle", "eager": "square", "flash": "diamond"}
STATE_SHAPES = {"better": "triangle-up", "no difference shown": "circle", "worse": "triangle-down"}
STATE_COLOURS = {"better": "var(--good)", "no difference shown": "var(--muted)", "worse": "var(--bad)"}
ROW_HEIGHT = 22


def chart() -> alt.Chart:
    """A chart whose rows are supplied in the page."""
    return alt.Chart(alt.NamedData(ROWS))


def finish(*layers: alt.Chart, height: int, description: str) -> dict[str, Any]:
    """The specification of one or more layers: as wide as its place in the page, checked against Vega-Lite's schema."""
    drawing: Any = alt.layer(*layers) if len(layers) > 1 else layers[0]
    spec: dict[str, Any] = drawing.properties(
        width="container",
        height=height,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        description=description,
    ).to_dict()
    del spec["config"]  # the page's
    return spec


def height_of(rows: Sequence[Mapping[str, Any]], step: int = ROW_HEIGHT) -> int:
    """Room for the cells of ``rows``, each ``step`` pixels high."""
    return step * len({row["label"] for row in rows})


def cell_axis() -> alt.Y:
    """The cells of the tables, in their order, downwards."""
    return alt.Y("label:N", sort=None, title=None, axis=alt.Axis(labelLimit=210, ticks=False, domain=False))


def by_implementation() -> alt.YOffset:
    """Implementations below each other within a cell."""
    return alt.YOffset("implementation:N", sort=list(IMPLEMENTATIONS))


def implementation_colour(present: Sequence[str]) -> alt.Color:
    """A colour for each implementation, the same in all charts."""
    scale = alt.Scale(domain=[*present], range=[colour_of(name) for name in present])
    return alt.Color("implementation:N", scale=scale, legend=alt.Legend(title=None))


def implementation_shape(present: Sequence[str]) -> alt.Shape:
    """A shape for each implementation."""
    scale = alt.Scale(domain=[*present], range=[SHAPES.get(name, "cross") for name in present])
    return alt.Shape("implementation:N", scale=scale, legend=alt.Legend(title=None))


def colour_of(implementation: str) -> str:
    return f"var(--{implementation})" if implementation in IMPLEMENTATIONS else "var(--other)"


def state_colour(states: Sequence[str]) -> alt.Color:
    """Better, worse, or neither."""
    present = [state for state in STATE_COLOURS if state in states]
    scale = alt.Scale(domain=present, range=[STATE_COLOURS[state] for state in present])
    return alt.Color("state:N", scale=scale, legend=alt.Legend(title=None))


def state_shape(states: Sequence[str]) -> alt.Shape:
    """The same as a shape."""
    present = [state for state in STATE_SHAPES if state in states]
    scale = alt.Scale(domain=present, range=[STATE_SHAPES[state] for state in present])
    return alt.Shape("state:N", scale=scale, legend=alt.Legend(title=None))


def tip(field: str, title: str, form: str | None = None) -> alt.Tooltip:
    """A line of a tooltip."""
    return alt.Tooltip(field, title=title) if form is None else alt.Tooltip(field, title=title, format=form)


def rule_at(value: float) -> alt.Chart:
    """A vertical line at a value that means something."""
    line = alt.Chart(alt.InlineData([{"at": value}])).mark_rule(strokeDash=[4, 3], color="var(--muted)")
    marked: alt.Chart = line.encode(x="at:Q")
    return marked


def dots(
    data: Sequence[Mapping[str, Any]],
    x: alt.X,
    colour: alt.Color,
    shape: alt.Shape,
    tips: Sequence[tuple[str, ...]],
    *,
    at: float,
    title: str,
    description: str,
    caption: str = "",
) -> Chart:
    """A dot per row beside a line at the value that means something; ``tips`` are the arguments of ``tip``."""
    points = (
        chart()
        .mark_point(filled=True, size=80, opacity=0.9)
        .encode(y=cell_axis(), x=x, color=colour, shape=shape, tooltip=[tip(*each) for each in tips])
    )
    spec = finish(rule_at(at), points, height=height_of(data), description=description)
    return Chart(title, spec, columns_of(data), caption, wide=True)
