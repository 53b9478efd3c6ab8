"""Parity of a component: its output, part by part, is the original's.

As in ``parity.py``, the reference is the original itself in float32 and the original in float32 in half precision,
where an error may be at most twice the original's own plus a small floor. Parts differ in scale (a loss beside
gradients), so an error is relative: the largest difference over the largest magnitude in that part of the reference.
Where there are many parts, the original's own error is that of its worst one: any of them may have been lucky.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from perf_tests.subjects.parity import HALF_FLOOR, ParityError
from perf_tests.subjects.subject import Stage

from .component import Component

# Relative to the largest value of a part. Gradients went through all layers twice: a few times the forward's error.
FLOAT32_TOLERANCE = 2e-5
FLOAT32_GRADIENT_TOLERANCE = 1e-3


class OutputReference(NamedTuple):
    """What a cell's outputs are compared with, on the host; ``errors`` are the original's own, part by part."""

    name: str
    parts: tuple[Tensor, ...]
    errors: tuple[float, ...]
    tokens: Tensor | None


def make_output_reference(stage: Stage) -> OutputReference:
    """Run the original, for half precision also the original in float32, and let go of both."""
    with stage.borrow("original") as original:
        own, tokens = _read(original)
    if stage.place.dtype == torch.float32:
        return OutputReference("original", own, (0.0,) * len(own), tokens)
    with stage.borrow("original", torch.float32) as precise:
        parts = _outputs(precise)
    errors = tuple(_relative_error(mine, true) for mine, true in zip(own, parts, strict=True))
    return OutputReference("original float32", parts, errors, tokens)


def check_outputs(subject: Component, reference: OutputReference) -> dict[str, Any]:
    """Compare ``subject`` with ``reference``; return the record (``schema.py``, key ``parity``), of the worst part.

    Raises:
        ParityError: a number is not finite, an error exceeds its bound, or in float32 a token differs.
    """
    half = subject.place.dtype != torch.float32
    own, tokens = _read(subject)
    if len(own) != len(reference.parts):
        raise ParityError(f"{subject.implementation} gives {len(own)} parts, not {len(reference.parts)}")
    if not all(bool(torch.isfinite(part).all()) for part in own):
        raise ParityError(f"{subject.implementation} gives NaN or infinite numbers")
    tolerance = FLOAT32_GRADIENT_TOLERANCE if len(own) > 1 else FLOAT32_TOLERANCE
    allowed = max(reference.errors)
    bound = 2 * allowed + HALF_FLOOR if half else tolerance
    error = max(_relative_error(mine, true) for mine, true in zip(own, reference.parts, strict=True))
    if not error <= bound:
        raise ParityError(
            f"{subject.implementation}'s output is off by {error:.3g} of its largest value, allowed {bound:.3g}"
            f" (against the {reference.name})"
        )
    first = _first_difference(tokens, reference.tokens)
    if first is not None and not half:
        raise ParityError(f"{subject.implementation}'s greedy tokens differ from the original's from token {first} on")
    return {
        "max_abs_error": error,
        "original_max_abs_error": allowed,
        "bound": bound,
        "reference_max_abs": 1.0,
        "reference": reference.name,
        "tokens_equal": None if tokens is None else first is None,
        "first_difference": first,
        "rows_different": None,
        "token_regret": None,
        "token_regret_bound": None,
    }


def _read(subject: Any) -> tuple[tuple[Tensor, ...], Tensor | None]:
    tokens = subject.tokens()
    return _outputs(subject), None if tokens is None else tokens.cpu()


def _outputs(subject: Any) -> tuple[Tensor, ...]:
    return tuple(part.detach().float().cpu() for part in subject.outputs())


def _relative_error(mine: Tensor, true: Tensor) -> float:
    if mine.shape != true.shape:
        raise ParityError(f"an output of {tuple(mine.shape)}, not {tuple(true.shape)}")
    scale = true.abs().max().item()
    error = (mine - true).abs().max().item()
    return error / scale if scale else error


def _first_difference(tokens: Tensor | None, expected: Tensor | None) -> int | None:
    """Index of the first token that differs in any row; ``None`` where all are equal or there are none."""
    if tokens is None or expected is None:
        return None
    shorter = min(tokens.shape[1], expected.shape[1])
    different = (tokens[:, :shorter] != expected[:, :shorter]).any(dim=0).nonzero()
    if len(different):
        return int(different[0])
    return None if tokens.shape == expected.shape else shorter
