"""The numerical check: a case whose logits or tokens are not the original's failed, whatever its speed.

Two questions. *Logits*: a teacher-forced forward pass over random tokens, against a reference. *Tokens*: the
greedy tokens that ``generate`` gives, against the original's.

In float32 the reference is the original itself: logits within rounding, all tokens equal. In half precision
it is the original in float32: the error may be at most twice the original's own plus a small floor (the
criterion of FlashAttention's tests), and since a near-tie may flip, tokens may differ, but each must be a
choice that such an error explains: no further below the reference's best than twice the bound on a logit
("regret").
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .cases import SETTINGS

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
    if tokens.shape != expected.tokens.shape:
        raise ParityError(
            f"{implementation} generated {tuple(tokens.shape)} tokens, not {tuple(expected.tokens.shape)}"
        )
    different = (tokens != expected.tokens).any(dim=0).nonzero()
    first = int(different[0]) if len(different) else None
    if first is not None and not half:
        raise ParityError(f"{implementation}'s greedy tokens differ from the original's from token {first} on")
    regret = reference.original_regret
    if first is not None:
        with stage.borrow("original", torch.float32) as precise:
            regret = measure_regret(precise, stage, tokens)
        if not regret <= 2 * bound:
            raise ParityError(f"{implementation} chose a token {regret:.3g} below the best, allowed {2 * bound:.3g}")
    return {
        "max_abs_error": error,
        "original_max_abs_error": reference.original_error,
        "bound": bound,
        "reference_max_abs": scale,
        "reference": reference.name,
        "tokens_equal": first is None,
        "first_difference": first,
        "token_regret": regret,
        "token_regret_bound": 2 * bound if half else None,
    }


def make_decoder_ids(stage: "Stage") -> torch.Tensor:
    """The prompt and random text tokens, (batch of at most 2, prompt + new tokens)."""
    setting = SETTINGS[stage.cell.setting]
    rows = min(setting.batch_size, FORCED_BATCH)
    generator = torch.Generator().manual_seed(SEED)
    text = torch.randint(stage.vocabulary.end_of_text, (rows, setting.new_tokens), generator=generator)
    return torch.cat([torch.tensor(stage.vocabulary.prompt).expand(rows, -1), text], dim=1)


@torch.no_grad()
def force(subject: "Subject", decoder_ids: torch.Tensor, first_row: int = 0) -> torch.Tensor:
    """Logits of a teacher-forced pass, (rows, tokens, vocabulary), float32 on the host."""
    rows = slice(first_row, first_row + len(decoder_ids))
    output = subject.model(
        input_features=subject.features[rows], decoder_input_ids=decoder_ids.to(subject.place.device)
    )
    logits: torch.Tensor = output.logits
    return logits.float().cpu()


def measure_regret(precise: "Subject", stage: "Stage", tokens: torch.Tensor) -> float:
    """How far below the best allowed token of ``precise`` the chosen ones lie, at most over ``tokens``.

    ``tokens`` is (batch, new tokens). The best is taken over what ``generate`` may choose: no suppressed
    token, no end of text, and at the first position none that may not begin.
    """
    prompt = torch.tensor(stage.vocabulary.prompt)
    suppressed = torch.tensor([*stage.vocabulary.suppress, stage.vocabulary.end_of_text])
    settings = stage.vocabulary.generation_settings()
    begin = torch.tensor(settings["begin_suppress_tokens"])
    worst = torch.zeros(())
    for row in range(0, len(tokens), REGRET_CHUNK):
        chosen = tokens[row : row + REGRET_CHUNK]
        ids = torch.cat([prompt.expand(len(chosen), -1), chosen[:, :-1]], dim=1)
        logits = force(precise, ids, row)[:, len(prompt) - 1 :]
        logits[..., suppressed] = -torch.inf
        logits[:, 0, begin] = -torch.inf
        of_chosen = logits.gather(-1, chosen[..., None]).squeeze(-1)
        worst = torch.maximum(worst, (logits.amax(dim=-1) - of_chosen).max())  # keeps a NaN, unlike max()
    return worst.item()
