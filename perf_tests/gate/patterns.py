"""Patterns of case ids, for thresholds and accepted growth."""

import re


def matches(pattern: str, case_id: str) -> bool:
    """Whether ``pattern`` matches all of the id, or all of what its brackets hold.

    ``*`` stands for any text and ``?`` for one character. Brackets stand for themselves, since ids hold them:
    ``test_generate[tiny.en-*]`` and ``tiny.en-*-flash`` are patterns.
    """
    parts = {"*": ".*", "?": "."}
    expression = re.compile("".join(parts.get(part, re.escape(part)) for part in pattern), re.DOTALL)
    inside = case_id.partition("[")[2].removesuffix("]")
    return any(expression.fullmatch(text) for text in (case_id, inside) if text)
