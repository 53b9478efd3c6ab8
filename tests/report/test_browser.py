"""The page in headless Chromium: charts drawn without an error, tables that sort and filter, light, dark and narrow."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perf_tests.matrix import cases
from perf_tests.report import command

from .make_history import make_history

playwright_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DRAWN = "html[data-drawn=all]"


class Visit:
    """A page that was opened and has drawn all; `complaints` are the console's and the network's."""

    def __init__(self, page: "playwright_api.Page", path: Path) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._request)
        page.goto(path.as_uri())
        page.wait_for_selector(DRAWN, timeout=60_000)

    def _request(self, request: "playwright_api.Request") -> None:
        if not request.url.startswith(("file:", "data:")):
            self.complaints.append(f"asked the network: {request.url}")

    def column(self, title: str, index: int) -> list[str]:
        """The cells of a table's column that are to be seen."""
        rows = self.table(title).locator("tbody tr:not([hidden])")
        return [text.strip() for text in rows.locator(f"td:nth-child({index + 1})").all_inner_texts()]

    def table(self, title: str) -> "playwright_api.Locator":
        return self.page.locator(".table").filter(has=self.page.get_by_role("heading", name=title))


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright_api.Browser"]:
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with playwright_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright_api.Error as error:
            pytest.skip(f"needs Chromium (apt-get install chromium, or set CHROMIUM): {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: "playwright_api.Browser") -> Iterator[Callable[..., Visit]]:
    contexts = []

    def open_page(path: Path, *, width: int = 1280, scheme: str = "light") -> Visit:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        return Visit(context.new_page(), path)

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def history_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick preset over 24 commits, with a step at the fourteenth."""
    folder = tmp_path_factory.mktemp("history")
    make_history(folder / "runs", 24, cases.select("quick", cases.Selection()), rounds=12, step=(14, 1.1))
    html = folder / "report.html"
    assert command.main([str(folder / "runs"), "--html", str(html)]) == 0
    return html


def test_the_page_of_the_committed_runs(visit: Callable[..., Visit], tmp_path: Path) -> None:
    assert command.main([str(ROOT / "results"), "--html", str(tmp_path / "report.html")]) == 0
    seen = visit(tmp_path / "report.html")
    assert seen.complaints == []
    figures = seen.page.locator("figure:not([hidden])")
    assert figures.count() >= 8
    for index in range(figures.count()):
        assert figures.nth(index).locator("svg").count() == 1
    machines = len([*(ROOT / "results").glob("*.json")])
    assert len(seen.column("single: batch size 1", 0)) == 13 * machines
    for name in ("Peak memory", "Exact counters of one round", "Parity"):
        assert len(seen.column(name, 0)) == 12 * machines


def test_sorting_and_filtering(visit: Callable[..., Visit], history_page: Path) -> None:
    seen = visit(history_page)
    table = seen.table("Peak memory")
    heading = table.get_by_role("button", name="implementation")
    heading.click()
    assert seen.column("Peak memory", 1) == sorted(seen.column("Peak memory", 1))
    heading.click()
    assert seen.column("Peak memory", 1) == sorted(seen.column("Peak memory", 1), reverse=True)
    table.get_by_role("searchbox").fill("flash tiny.en")
    assert [*zip(seen.column("Peak memory", 0), seen.column("Peak memory", 1), strict=True)] == [
        ("tiny.en · 4 · single", "flash"),
        ("tiny.en · 2 · single", "flash"),
        ("tiny.en · 4 · batched_small", "flash"),
    ]
    tables = seen.table("single: batch size 1")
    tables.get_by_role("button", name="time flash, s").click()
    times = seen.column("single: batch size 1", 5)
    assert [float(text) for text in times[:3]] == sorted(float(text) for text in times[:3])
    assert times[3:] == ["missing"] * 10
    assert seen.complaints == []


def test_choosing_a_case_draws_it(visit: Callable[..., Visit], history_page: Path) -> None:
    seen = visit(history_page)
    section = seen.page.locator("section[id$=-history]")
    assert section.locator("figure").nth(0).get_by_text("-9").count() == 1  # the change point, in per cent
    original = "test_generate[tiny.en-4-single-original]"
    seen.table("Cases over the runs").get_by_role("button", name=original, exact=True).click()
    assert section.get_by_role("combobox").input_value() == original
    playwright_api.expect(section.locator("figure").nth(0)).to_be_hidden()  # it has no control
    playwright_api.expect(section.locator("figure").nth(1).locator("svg")).to_be_visible()
    assert seen.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_to_scroll_down_only(visit: Callable[..., Visit], history_page: Path, scheme: str) -> None:
    seen = visit(history_page, width=390, scheme=scheme)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
    colours = seen.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('figure svg text')).fill]"
    )
    dark = [sum(map(int, colour.strip("rgb()").split(","))) < 384 for colour in colours]
    assert dark == ([True, False] if scheme == "dark" else [False, True])
    assert seen.complaints == []


@pytest.mark.slow
def test_a_thousand_runs_of_96_cases(
    visit: Callable[..., Visit], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = cases.select("full", cases.Selection())
    assert len(chosen) == 96
    make_history(tmp_path / "runs", 1000, chosen, rounds=10, step=(600, 1.05), distinct=20)
    html = tmp_path / "report.html"
    assert command.main([str(tmp_path / "runs"), "--html", str(html)]) == 0
    capsys.readouterr()
    assert html.stat().st_size < 10_000_000
    seen = visit(html)
    assert len(seen.column("Cases over the runs", 0)) == 96
    assert len(seen.column("Change points, newest first", 0)) == 32
    section = seen.page.locator("section[id$=-history]")
    section.get_by_role("combobox").select_option("test_generate[medium.en-24-batched-flash]")
    playwright_api.expect(section.locator("figure").nth(0).locator("svg")).to_be_visible()
    assert seen.complaints == []
