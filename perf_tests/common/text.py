"""Text from a run's JSON made safe to show, and numbers as people read them.

What a JSON holds is data: it may not move the cursor of a terminal, start a new line of a report, or be
interpreted as rich's markup or as Markdown.
"""

import re

LONGEST = 300
_MARKDOWN = re.compile(r"([\\`*_{}\[\]|!~$])")


def clean(value: object, longest: int = LONGEST) -> str:
    """One line of printable text: control characters and lone surrogates spelled out, long text cut."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return "".join(character if character.isprintable() else _spell(character) for character in text)


def escape_markdown(value: object) -> str:
    """Text for a line or a table cell of Markdown that GitHub shows as it is: no markup, links or mentions."""
    text = _MARKDOWN.sub(r"\\\1", clean(value))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # GitHub looks for links, mentions and issues in what is rendered, so escaping is not enough there.
    for trigger, rest in (("@", ""), ("#", ""), (":", "//"), ("www", ".")):
        text = text.replace(trigger + rest, f"{trigger}<!-- -->{rest}")
    return text


def percent(fraction: float, *, sign: bool = True) -> str:
    """A fraction as a percentage with one digit: ``+5.1 %``."""
    return f"{100 * fraction:{'+' if sign else ''}.1f} %"


def count_of(number: int, noun: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_line(error: BaseException) -> str:
    """An error as one short line: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _spell(character: str) -> str:
    if character in "\n\r\t":
        return " "
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
