"""Who may import whom: each room of the suite uses those before it, and what reads saved runs knows no Whisper."""

import ast
from collections.abc import Iterator
from pathlib import Path

import perf_tests

SUITE = Path(perf_tests.__file__).parent
ROOMS = ["common", "runs", "gate", "matrix", "machine", "subjects", "measure", "session", "ab", "report", "ci", "peers"]
# What starts at once, and reads the runs of anything.
READERS = {"common": ROOMS[:1], "runs": ROOMS[:2], "gate": ROOMS[:3]}
HEAVY = {"torch", "transformers", "whisper_flash_attention"}


def imports_of(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    package = ["perf_tests", *path.relative_to(SUITE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_every_folder_is_a_room() -> None:
    assert {path.parent.name for path in SUITE.glob("*/__init__.py")} == {*ROOMS}


def test_a_room_uses_those_before_it() -> None:
    wrong = []
    for room in ROOMS:
        allowed = {*READERS.get(room, ROOMS[: ROOMS.index(room) + 1])}
        for path in (SUITE / room).rglob("*.py"):
            for module in imports_of(path):
                first, _, rest = module.partition(".")
                if first == "perf_tests" and rest.partition(".")[0] not in allowed:
                    wrong.append(f"{path.relative_to(SUITE)}: {module}")
                if first in HEAVY and room in READERS:
                    wrong.append(f"{path.relative_to(SUITE)}: {module}")
    assert wrong == []


def test_at_the_top_are_the_entrances_alone() -> None:
    """A newcomer sees the commands, the plugin, the fixtures and the cases."""
    names = {path.name for path in SUITE.glob("*.py")}
    assert names - {path.name for path in SUITE.glob("test_*.py")} == {
        "__init__.py",
        "__main__.py",
        "conftest.py",
        "plugin.py",
    }
