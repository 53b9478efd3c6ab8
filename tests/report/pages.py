"""Looking into a page without a browser."""

import json
import re
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """The page's section ids, its tables by title (rows of cell texts), its links, and every element and attribute."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._title = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if attributes.get("id"):
            self.ids.append(str(attributes["id"]))
        if tag == "a":
            self.links.append(str(attributes.get("href")))
        self._open.append(tag)
        if tag == "h4":
            self._title = ""
        if tag == "table":
            self.tables.setdefault(self._title, [])
        if tag == "tr" and "tbody" in self._open:
            self.tables[self._title].append([])
        if tag == "td":
            self.tables[self._title][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "h4" in self._open:
            self._title += data
        if "td" in self._open:
            self.tables[self._title][-1][-1] += data


def data_of(html: str) -> dict[str, Any]:
    """The charts and choices that the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data
