"""Consoles that are not UTF-8 (``cp1252``, ``ascii``, a pipe under either): what they lack is written in ASCII."""

import codecs
import io
import sys

IN_ASCII = "perf_tests.in_ascii"
# What the suite's own lines and rich's tables have beyond ASCII. Anything else, letters of a name, is spelled out.
_SIGNS = {"≈": "~", "…": "...", "→": "->", "≤": "<=", "≥": ">=", "±": "+-", "·": "*", "°": "", "²": "^2"}
_SIGNS["\N{MULTIPLICATION SIGN}"] = "x"
_LINES = range(0x2500, 0x2580)
_STROKES = {**dict.fromkeys("─━╌╍┄┅┈┉═╴╶╸╺", "-"), **dict.fromkeys("│┃╎╏┆┇┊┋║╵╷╹╻", "|")}


def show_everywhere() -> None:
    """Let standard output and standard error take every character, unless PYTHONIOENCODING says what to do with it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors not in ("replace", "ignore", "xmlcharrefreplace"):
            stream.reconfigure(errors=IN_ASCII)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spell, error.object[error.start : error.end])), error.end


def _spell(character: str) -> str:
    if ord(character) in _LINES:
        return _STROKES.get(character, "+")
    return _SIGNS.get(character, character.encode("ascii", "backslashreplace").decode("ascii"))


codecs.register_error(IN_ASCII, _in_ascii)
