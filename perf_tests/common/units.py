"""Figures as people read them."""

MEGABYTE = 1_000_000


def format_duration(seconds: float) -> str:
    """Seconds as people say them: ``8 s``, ``5 min``, ``1 h 20 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def format_seconds(seconds: float) -> str:
    """Three digits that count: ``0.412 s`` or ``7.31 ms``."""
    return f"{seconds:#.3g} s" if seconds >= 0.1 else f"{seconds * 1000:#.3g} ms"


def format_bytes(count: int) -> str:
    """Decimal megabytes."""
    return f"{count / MEGABYTE:,.1f} MB"


def format_flops(count: int) -> str:
    """Three digits that count: ``42.2 GFLOP``."""
    unit, factor = ("TFLOP", 1e12) if count >= 1e12 else ("GFLOP", 1e9)
    return f"{f'{count / factor:#.3g}'.rstrip('.')} {unit}"
