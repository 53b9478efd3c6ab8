"""The numerical check: a case whose logits or tokens are not the original's failed, whatever its speed.

Two questions. *Logits*: a teacher-forced forward pass over random tokens, against a reference. *Tokens*: the
greedy tokens that ``generate`` gives, against the original's.

In float32 the reference is the original itself: logits within rounding, all tokens equal. In half precision
it is the original in float32: the error may be at most twice the original's own plus a small floor (the
criterion of FlashAttention's tests), and since a near tie may flip, tokens may differ, but each must be a
choice that such an error explains: no further below the reference's best than twice the bound on a logit
("regret").
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from perf_tests.matrix.cases import SETTINGS

if TYPE_CHECKING:
    from .subject import Stage, Subject

# Relative to the largest reference logit. Float32: SDPA and eager differ by 1e-6 here (4 layers), a wrong
# mask makes 1e-1. Half precision: an absolute floor for a model that happens to have next to no error.
FLOAT32_TOLERANCE = 2e-5
HALF_FLOOR = 1e-3
FORCED_BATCH = 2
REGRET_CHUNK = 4
SEED = 11


class ParityError(AssertionError):
    """An implementation's output is not the original's; the message says what differs and by how much."""


class Outputs(NamedTuple):
    """What an implementation gives, on the host.

    Shapes: ``logits`` (2, prompt + new tokens, vocabulary), or one row for a batch of one, float32; ``tokens`` (batch,
    new tokens).
    """

    logits: torch.Tensor
    tokens: torch.Tensor


class Reference(NamedTuple):
    """What a cell's outputs are compared with: the original's tokens, and its logits or those in float32."""

    name: str
    outputs: Outputs
    original_error: float
    original_regret: float | None


def read_outputs(subject: "Subject", stage: "Stage", tokens: torch.Tensor | None = None) -> Outputs:
    """What ``subject`` gives; ``tokens`` are those of a round that it has run already."""
    logits = force(subject, make_decoder_ids(stage))
    return Outputs(logits, (subject.generate() if tokens is None else tokens).cpu())


def make_reference(stage: "Stage", original: Outputs | None = None) -> Reference:
    """From the original's outputs, for half precision also from the original in float32.

    Whatever has to be built for that is let go of: the original, where its outputs are not given.
    """
    if original is None:
        with stage.borrow("original") as subject:
            original = read_outputs(subject, stage)
    if stage.place.dtype == torch.float32:
        return Reference("original", original, 0.0, None)
    with stage.borrow("original", torch.float32) as precise:
        logits = force(precise, make_decoder_ids(stage))
        regret = measure_regret(precise, stage, original.tokens)
    error = (original.logits - logits).abs().max().item()
    return Reference("original float32", Outputs(logits, original.tokens), error, regret)


def check_parity(implementation: str, outputs: Outputs, reference: Reference, stage: "Stage") -> dict[str, Any]:
    """Compare an implementation's ``outputs`` with ``reference``; return the record (``schema.py``, key ``parity``).

    Raises:
        ParityError: a logit is not finite, the error or the regret exceeds its bound, the number of tokens is not what
            was forced, or in float32 a token differs.
    """
    half = stage.place.dtype != torch.float32
    expected, (logits, tokens) = reference.outputs, outputs
    if not torch.isfinite(logits).all():
        raise ParityError(f"{implementation} gives NaN or infinite logits")
    error = (logits - expected.logits).abs().max().item()
    scale = expected.logits.abs().max().item()
    bound = 2 * reference.original_error + HALF_FLOOR * scale if half else FLOAT32_TOLERANCE * scale
    if not error <= bound:
        raise ParityError(
            f"{implementation}'s logits are off by {error:.3g}, allowed {bound:.3g}"
            f" (against the {reference.name}, whose logits reach {scale:.3g})"
        )
    rows, first = find_differences(tokens, expected.tokens)
    setting = SETTINGS[stage.cell.setting]
    is_whole = tokens.shape == (setting.batch_size, setting.new_tokens)
    regret = reference.original_regret
    if rows and half:
        # Each row to its end, on its own prefix: what is wrong behind a tie must not hide there.
        # In a sequence of another length other windows may lie behind the first difference, and the case fails anyway.
        judged = tokens if is_whole or first is None else tokens[:, : first + 1]
        with stage.borrow("original", torch.float32) as precise:
            regret = measure_regret(precise, stage, judged, rows)
        if not regret <= 2 * bound:
            raise ParityError(f"{implementation} chose a token {regret:.3g} below the best, allowed {2 * bound:.3g}")
    if not is_whole:
        reason = f" (a near tie at token {first} changed the work)" if rows and half else ""
        raise ParityError(
            f"{implementation} generated {tuple(tokens.shape)} tokens,"
            f" not ({setting.batch_size}, {setting.new_tokens}){reason}"
        )
    if rows and not half:
        raise ParityError(f"{implementation}'s greedy tokens differ from the original's from token {first} on")
    return {
        "max_abs_error": error,
        "original_max_abs_error": reference.original_error,
        "bound": bound,
        "reference_max_abs": scale,
        "reference": reference.name,
        "tokens_equal": first is None,
        "first_difference": first,
        "rows_different": len(rows),
        "token_regret": regret,
        "token_regret_bound": 2 * bound if half else None,
    }


def find_differences(tokens: torch.Tensor, expected: torch.Tensor) -> tuple[list[int], int | None]:
    """The rows of ``tokens`` that differ from those of ``expected``, both (batch, tokens), and where the first does.

    Only as many rows and tokens are compared as both have.
    """
    both = tuple(slice(min(sizes)) for sizes in zip(tokens.shape, expected.shape, strict=True))
    differs = tokens[both] != expected[both]
    positions = differs.any(dim=0).nonzero().flatten()
    return differs.any(dim=1).nonzero().flatten().tolist(), int(positions[0]) if len(positions) else None


def make_decoder_ids(stage: "Stage") -> torch.Tensor:
    """The prompt and random text tokens, (batch of at most 2, prompt + new tokens)."""
    setting = SETTINGS[stage.cell.setting]
    rows = min(setting.batch_size, FORCED_BATCH)
    generator = torch.Generator().manual_seed(SEED)
    text = torch.randint(stage.vocabulary.end_of_text, (rows, setting.new_tokens), generator=generator)
    return torch.cat([torch.tensor(stage.vocabulary.prompt).expand(rows, -1), text], dim=1)


def force(subject: "Subject", decoder_ids: torch.Tensor) -> torch.Tensor:
    """Logits of a teacher-forced pass over the first rows, (rows, tokens, vocabulary), float32 on the host."""
    return _forward(subject, decoder_ids, range(len(decoder_ids))).float().cpu()


def measure_regret(
    precise: "Subject", stage: "Stage", tokens: torch.Tensor, rows: Sequence[int] | None = None
) -> float:
    """How far below the best allowed token of ``precise`` the chosen ones lie, at most over ``rows`` (default: all).

    ``tokens`` is (batch, new tokens). The best is taken over what ``generate`` may choose: no suppressed
    token, no end of text, and at the first position none that may not begin.
    """
    device, prompt = precise.place.device, torch.tensor(stage.vocabulary.prompt)
    suppressed = stage.arguments.get("suppress_tokens", stage.vocabulary.suppress)
    never = torch.tensor([*suppressed, stage.vocabulary.end_of_text], device=device)
    begin = torch.tensor(stage.vocabulary.generation_settings()["begin_suppress_tokens"], device=device)
    rows = range(len(tokens)) if rows is None else rows
    worst = torch.zeros((), device=device)
    for start in range(0, len(rows), REGRET_CHUNK):
        chunk = rows[start : start + REGRET_CHUNK]
        chosen = tokens[[*chunk]]
        ids = torch.cat([prompt.expand(len(chosen), -1), chosen[:, :-1]], dim=1)
        logits = _forward(precise, ids, chunk)[:, len(prompt) - 1 :]
        logits[..., never] = -torch.inf
        logits[:, 0, begin] = -torch.inf
        of_chosen = logits.gather(-1, chosen.to(device)[..., None]).squeeze(-1)
        worst = torch.maximum(worst, (logits.amax(dim=-1) - of_chosen).max())  # keeps a NaN, unlike max()
    return worst.item()


@torch.no_grad()
def _forward(subject: "Subject", decoder_ids: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Logits of a teacher-forced pass over ``rows``, (rows, tokens, vocabulary), on the subject's device."""
    output = subject.model(
        input_features=subject.features[[*rows]], decoder_input_ids=decoder_ids.to(subject.place.device)
    )
    logits: torch.Tensor = output.logits
    return logits
