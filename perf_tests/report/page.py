"""The page: one HTML file with its charts, data, styles and scripts in it, that asks the network for nothing."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from perf_tests.common.text import clean
from perf_tests.runs.fingerprint import describe_machine

from .content import Chart, Section
from .gathering import Gathered
from .sections import SECTIONS
from .subject import make_subject

TEMPLATES = Path(__file__).parent / "templates"
TITLE = "Whisper Flash Attention: performance"
VEGA_LITE = "6.4"


class Part(NamedTuple):
    """The sections of one machine. ``key`` makes their ids unique."""

    key: str
    title: str
    run: str
    sections: Sequence[Section]


def render_page(gathered: Gathered, verdict: Section | None, commit_template: str | None) -> str:
    """The whole page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    parts = []
    for machine in gathered.machines:
        subject = make_subject(machine, commit_template)
        sections = [section for build in SECTIONS if (section := build(subject)) is not None]
        run = machine.shown
        parts.append(Part(f"m{machine.key}", describe_machine(run.machine_info), run.describe(), sections))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clean"] = clean
    return environment.get_template("page.html").render(
        title=TITLE,
        parts=parts,
        verdict=verdict,
        notes=gathered.notes,
        data=embed(_data(parts, verdict)),
        library=_library(),
        style=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "page.js").read_text(encoding="utf-8"),
    )


def embed(value: Any) -> str:
    """JSON that may stand in a ``script`` element: nothing in it ends the element or starts a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(parts: Sequence[Part], verdict: Section | None) -> dict[str, Any]:
    """Charts and choices by the ids that the template gives their places."""
    charts: dict[str, Any] = {}
    choices: dict[str, Any] = {}
    for prefix, section in [
        *((f"{part.key}-{section.id}", section) for part in parts for section in part.sections),
        *([("verdict", verdict)] if verdict else []),
    ]:
        for number, chart in enumerate(section.charts, 1):
            charts[f"{prefix}-chart{number}"] = _chart(chart, prefix)
        if section.choice:
            choices[prefix] = {"choices": section.choice.choices, "shared": section.choice.shared}
    return {"charts": charts, "choices": choices}


def _chart(chart: Chart, prefix: str) -> dict[str, Any]:
    if chart.rows is None:
        return {"spec": chart.spec, "choice": prefix, "needs": chart.needs}
    return {"spec": chart.spec, "rows": chart.rows}


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed, as one script that leaves ``vegaEmbed`` behind."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
