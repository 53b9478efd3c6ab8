"""A comparison as Markdown, for a pull request."""

from perf_tests.common.text import escape_markdown

from .comparison import Comparison
from .terminal import cells, shown_columns
from .verdicts import Verdict


def to_markdown(comparison: Comparison) -> str:
    """What is wrong first; the figures of all cases are folded away below it."""
    lines = [
        f"### {escape_markdown(comparison.summary())}",
        "",
        f"BASE: {escape_markdown(comparison.base)}  ",
        f"HEAD: {escape_markdown(comparison.head)}",
        "",
    ]
    told = [case for case in comparison.by_badness() if case.verdict is not Verdict.PASS]
    if told:
        lines += ["| verdict | case | why |", "|---|---|---|"]
        for case in told:
            why = "<br>".join(map(escape_markdown, case.reasons))
            lines.append(f"| **{case.verdict}** | {escape_markdown(case.id)} | {why} |")
        lines.append("")
    for case_id, finding in comparison.accepted():
        lines.append(f"- accepted: {escape_markdown(case_id)}: {escape_markdown(finding.reason)}")
    lines += [f"- {escape_markdown(note)}" for note in comparison.notes]
    columns = shown_columns(comparison)
    lines += ["", "<details><summary>all cases</summary>", "", f"| verdict | case | {' | '.join(columns)} |"]
    lines.append("|---|---|" + "---:|" * len(columns))
    for case in comparison.by_badness():
        figures = " | ".join(map(escape_markdown, cells(case, columns)))
        lines.append(f"| {case.verdict} | {escape_markdown(case.id)} | {figures} |")
    return "\n".join([*lines, "", "</details>", ""])
