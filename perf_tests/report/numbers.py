"""Numbers as a report shows them; an empty text where there is none."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from perf_tests.common.intervals import Estimate
from perf_tests.common.units import MEGABYTE, format_seconds
from perf_tests.runs.views import CaseView, number
from perf_tests.session.table import show_tokens

GIGABYTE = 1_000_000_000


def show_seconds(seconds: float | None) -> str:
    """Three digits that count, in s or ms."""
    return "" if seconds is None else format_seconds(seconds)


def show_nominal(seconds: float | None) -> str:
    """Seconds of a whole setting: ``71.3``."""
    return "" if seconds is None else f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}"


def show_gigabytes(count: float | None) -> str:
    """``0.180``: decimal gigabytes, in thousandths."""
    return "" if count is None else f"{count / GIGABYTE:.3f}"


def show_megabytes(count: float | None) -> str:
    """``179.7``: decimal megabytes."""
    return "" if count is None else f"{count / MEGABYTE:,.1f}"


def show_ratio(ratio: float | None) -> str:
    """``0.98``."""
    return "" if ratio is None else f"{ratio:.2f}"


def show_speedup(speedup: Estimate | None) -> str:
    """``1.67 [1.63, 1.72]``."""
    if speedup is None:
        return ""
    interval = "" if speedup.low is None else f" [{speedup.low:.2f}, {speedup.high:.2f}]"
    return f"{speedup.median:.2f}{interval}"


def show_count(count: float | None) -> str:
    """``5,451``."""
    return "" if count is None else f"{count:,.0f}"


def show_significant(value: float | None) -> str:
    """Three digits that count."""
    return "" if value is None else f"{value:#.3g}".removesuffix(".") if value else "0"


def show_share(fraction: float | None) -> str:
    """``5.1 %``."""
    return "" if fraction is None else f"{100 * fraction:.1f} %"


# What only some works have: heading, recorded key, how it is shown.
SELDOM_RECORDED = (
    ("of the limit", "fraction_of_limit", show_ratio),
    ("real-time factor", "real_time_factor", show_significant),
    ("word error rate", "word_error_rate", show_share),
)


def seldom_recorded(cases: Iterable[CaseView]) -> list[tuple[str, str, Callable[[float | None], str]]]:
    """Those that any of ``cases`` has."""
    keys = {key for case in cases for _, key, _ in SELDOM_RECORDED if case.value(key) is not None}
    return [entry for entry in SELDOM_RECORDED if entry[1] in keys]


def show_change(fraction: float | None) -> str:
    """``+5.1 %``."""
    return "" if fraction is None else f"{100 * fraction:+.1f} %"


def show_parity(parity: Mapping[str, Any]) -> str:
    """``tokens equal, error 6e-06 of 1e-04``; what is known of it."""
    parts = [f"tokens {tokens}"] if (tokens := show_tokens(parity)) else []
    error, bound = (number(parity.get(key)) for key in ("max_abs_error", "bound"))
    if error is not None:
        parts.append(f"error {error:.0e}" + ("" if bound is None else f" of {bound:.0e}"))
    return ", ".join(parts)
