"""Whatever text a JSON holds: it is shown, and it does nothing, in HTML, Markdown and CSV."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perf_tests.matrix.cases import Case
from perf_tests.report.gathering import Found, gather
from perf_tests.report.page import embed
from perf_tests.report.rows import rows_of
from perf_tests.report.spreadsheet import no_formula, write_spreadsheets
from tests.make_runs import FLASH, info_of, make_run, save, set_outcome

from .conftest import Outcome
from .pages import Page, data_of

EVIL = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`|"
    " [a](javascript:alert(3)) @team #1 \x1b[31m\ud800"
)


def evil_run(seed: int) -> dict[str, Any]:
    """A run whose every text is meant to do harm."""
    cases = [Case("tiny.en", layers, "single", name) for layers in (4, 2) for name in ("original", "flash")]
    run = make_run(cases, seed=seed)
    for bench in run["benchmarks"]:
        bench["params"] |= {"checkpoint": EVIL, "setting": EVIL}
        info = bench["extra_info"]
        info |= {"device": EVIL, "dtype": EVIL, "weights": EVIL, "audio": EVIL, "attention_backend": {EVIL: EVIL}}
        info["parity"]["reference"] = EVIL
    run["benchmarks"][2]["params"]["implementation"] = EVIL
    run["benchmarks"][3]["name"] = run["perf_cases"][3]["id"] = f"test_{EVIL}[{EVIL}]"
    run["machine_info"] |= {"cpu": {"brand_raw": EVIL}, "node": EVIL, "torch": EVIL}
    run["commit_info"] = {"id": f"javascript:{EVIL}", "branch": EVIL, "dirty": True}
    return run


def test_html(report: Callable[..., Outcome], tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        run = evil_run(seed)
        run["datetime"] = f"{seed}{EVIL}"
        set_outcome(run, FLASH, "failed", EVIL)
        save(run, tmp_path / "runs" / f"{seed}.json")
    outcome = report(tmp_path / "runs", "--commit-url", "https://example.org/{commit}")
    assert outcome.code == 0, outcome.err
    page = Page(outcome.html)
    tags = [tag for tag, _ in page.elements]
    assert "img" not in tags
    assert tags.count("script") == 3
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert all(link.startswith("#") for link in page.links)
    assert "\x1b" not in outcome.html
    assert any(EVIL[:9] in row[0] for rows in page.tables.values() for row in rows)
    (history,) = [choice for choice in data_of(outcome.html)["choices"].values() if choice["shared"]]
    assert history["shared"]["url"] == [None, None, None]


def test_markdown(report: Callable[..., Outcome], tmp_path: Path) -> None:
    run = evil_run(1)
    set_outcome(run, FLASH, EVIL, EVIL)
    text = report(save(run, tmp_path / "run.json")).markdown
    assert "<script" not in text
    assert "<img" not in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    assert "@team" not in text
    assert "#1" not in text
    assert "\x1b" not in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") - 1 in (5, 6, 8)


def test_data_in_a_script_element_cannot_end_it() -> None:
    text = embed({"<!--": "</script>", "&": "]]>"})
    assert not {"<", ">", "&"} & {*text}


def test_csv(tmp_path: Path) -> None:
    assert no_formula('=HYPERLINK("x")') == '\'=HYPERLINK("x")'
    assert no_formula("tiny.en") == "tiny.en"
    run = make_run([Case("tiny.en", 4, "single", "flash")])
    run["benchmarks"][0]["params"]["checkpoint"] = '@SUM(1)\n,"'
    info_of(run)["parameter_count"] = "=1+1"
    path = save(run, tmp_path / "run.json")
    (machine,) = gather([Found(path, path.name)]).machines
    (written,) = write_spreadsheets(rows_of(machine.shown), tmp_path / "out")
    assert written.name == "single-flash.csv"
    assert written.read_text().splitlines()[1] == '"\'@SUM(1) ,""",4,,,0.180,20.57'
