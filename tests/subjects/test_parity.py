import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from perf_tests.measure.memory import measure_round
from perf_tests.runs import schema
from perf_tests.runs.validation import validate
from perf_tests.subjects import weights
from perf_tests.subjects.parity import ParityError, Reference, check_parity, make_reference, read_outputs
from perf_tests.subjects.subject import Stage, Subject

MakeStage = Callable[[torch.dtype], Stage]
PARITY = next(field for field in schema.EXTRA_INFO if field.name == "parity")
HALF = [torch.bfloat16, torch.float16]


def check(subject: Subject, stage: Stage, reference: Reference) -> dict[str, Any]:
    return check_parity(subject.implementation, read_outputs(subject, stage), reference, stage)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("implementation", ["original", "eager", "flash"])
def test_a_right_implementation_passes(implementation: str, dtype: torch.dtype, make_stage: MakeStage) -> None:
    stage = make_stage(dtype)
    record = check(stage.build(implementation), stage, make_reference(stage))
    assert list(validate(record, PARITY.fields, "parity")) == []
    assert record["max_abs_error"] <= record["bound"]
    if dtype == torch.float32:
        assert record["tokens_equal"]
        assert record["token_regret"] is None
    if implementation == "original":
        assert record["max_abs_error"] == record["original_max_abs_error"]
        assert record["tokens_equal"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_originals_own_outputs_make_the_reference_that_a_second_original_makes(
    dtype: torch.dtype, make_stage: MakeStage
) -> None:
    stage = make_stage(dtype)
    subject = stage.build("original")
    _, tokens = measure_round(subject)
    own = make_reference(stage, read_outputs(subject, stage, tokens))
    other = make_reference(stage)
    for mine, its in zip(own.outputs, other.outputs, strict=True):
        assert torch.equal(mine, its)
    assert (own.name, *own[2:]) == (other.name, *other[2:])


@pytest.mark.parametrize("implementation", ["original", "flash"])
def test_the_tokens_of_a_round_that_was_run_need_no_other(
    implementation: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = stage.build(implementation)
    _, tokens = measure_round(subject)
    expected = read_outputs(subject, stage).tokens
    monkeypatch.setattr(subject, "generate", None)
    assert torch.equal(read_outputs(subject, stage, tokens).tokens, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_weight_fails(dtype: torch.dtype, make_stage: MakeStage) -> None:
    stage = make_stage(dtype)
    reference = make_reference(stage)
    subject = stage.build("flash")
    with torch.no_grad():
        subject.model.model.decoder.layers[0].encoder_attn.v_proj.weight.mul_(2)
    with pytest.raises(ParityError, match="flash's logits are off by"):
        check(subject, stage, reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_fails(dtype: torch.dtype, make_stage: MakeStage) -> None:
    stage = make_stage(dtype)
    reference = make_reference(stage)
    subject = stage.build("flash")
    with torch.no_grad():
        subject.model.model.decoder.layer_norm.weight[0] = torch.nan
    with pytest.raises(ParityError, match="NaN"):
        check(subject, stage, reference)


def with_tokens(subject: Subject, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(subject, "generate", lambda: tokens)
    return subject


def test_another_token_fails_in_float32(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = make_reference(stage)
    tokens = reference.outputs.tokens.clone()
    tokens[1, 3] += 1
    subject = with_tokens(stage.build("flash"), tokens, monkeypatch)
    with pytest.raises(ParityError, match="from token 3 on"):
        check(subject, stage, reference)


def test_another_number_of_tokens_fails(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = make_reference(stage)
    right = reference.outputs.tokens
    for tokens in (right[:, :-1], right.repeat(1, 2), right[:1], right.repeat(2, 1)):
        subject = with_tokens(stage.build("flash"), tokens, monkeypatch)
        with pytest.raises(ParityError, match=re.escape(f"generated {tuple(tokens.shape)} tokens, not (2, 5)")):
            check(subject, stage, reference)


def test_a_token_that_no_rounding_explains_fails_in_half_precision(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(torch.bfloat16)
    reference = make_reference(stage)
    tokens = reference.outputs.tokens.clone()
    tokens[0, 2] = (tokens[0, 2] + 1000) % 50_000
    subject = with_tokens(stage.build("flash"), tokens, monkeypatch)
    with pytest.raises(ParityError, match="below the best"):
        check(subject, stage, reference)


def test_a_suppressed_token_fails_in_half_precision(make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(torch.bfloat16)
    reference = make_reference(stage)
    tokens = reference.outputs.tokens.clone()
    tokens[0, 2] = stage.vocabulary.suppress[0]
    subject = with_tokens(stage.build("flash"), tokens, monkeypatch)
    with pytest.raises(ParityError, match="inf below the best"):
        check(subject, stage, reference)


TIE = 2
"""Where a tie is planted."""


@pytest.fixture
def tied(make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> tuple[Stage, Reference, torch.Tensor]:
    """A stage in half precision, its reference, and tokens that differ in an exact tie, in one place of one row.

    Two words of the vocabulary have the same embedding, so also the same logit: one may be chosen for the other, and
    what follows is the same.
    """
    stage = make_stage(torch.bfloat16)
    chosen = int(make_reference(stage).outputs.tokens[0, TIE])
    twin = chosen + 1 if chosen < 40_000 else chosen - 1
    make = weights._make_tensor

    def make_with_twins(name: str, shape: torch.Size) -> torch.Tensor:
        tensor = make(name, shape)
        if name == "model.decoder.embed_tokens.weight":
            tensor[twin] = tensor[chosen]
        return tensor

    monkeypatch.setattr(weights, "_make_tensor", make_with_twins)
    stage._weights._random.clear()
    reference = make_reference(stage)
    tokens = reference.outputs.tokens.clone()
    assert int(tokens[0, TIE]) in {chosen, twin}
    tokens[0, TIE] = chosen + twin - int(tokens[0, TIE])
    return stage, reference, tokens


def test_a_tie_is_recorded_and_no_failure(
    tied: tuple[Stage, Reference, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, reference, tokens = tied
    record = check(with_tokens(stage.build("flash"), tokens, monkeypatch), stage, reference)
    assert (record["tokens_equal"], record["first_difference"], record["rows_different"]) == (False, TIE, 1)
    assert record["token_regret"] <= record["token_regret_bound"]
    assert list(validate(record, PARITY.fields, "parity")) == []


def test_a_cache_that_is_broken_behind_a_tie_fails(
    tied: tuple[Stage, Reference, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows the tie is chosen by a model that does not see the tokens before it."""
    stage, reference, tokens = tied
    prompt = torch.tensor(stage.vocabulary.prompt)
    ids = torch.cat([prompt, tokens[0, : TIE + 1]])[None]
    seen = torch.ones_like(ids)
    seen[0, len(prompt) : len(prompt) + TIE] = 0
    with stage.borrow("original") as blind, torch.no_grad():
        for position in range(TIE + 1, tokens.shape[1]):
            logits = blind.model(
                input_features=blind.features[:1], decoder_input_ids=ids, decoder_attention_mask=seen
            ).logits[0, -1]
            logits[stage.arguments["suppress_tokens"]] = -torch.inf
            tokens[0, position] = logits.argmax()
            ids = torch.cat([ids, tokens[:1, position : position + 1]], dim=1)
            seen = torch.cat([seen, torch.ones(1, 1, dtype=torch.long)], dim=1)
    assert not torch.equal(tokens[0, TIE + 1 :], reference.outputs.tokens[0, TIE + 1 :])
    with pytest.raises(ParityError, match="below the best"):
        check(with_tokens(stage.build("flash"), tokens, monkeypatch), stage, reference)


@pytest.mark.parametrize("wrong", [False, True])
def test_choices_are_judged_before_their_number(
    wrong: bool, tied: tuple[Stage, Reference, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tie at which a window ends makes other work, and the message says so; a wrong token is called one."""
    stage, reference, tokens = tied
    if wrong:
        tokens[0, TIE] = (tokens[0, TIE] + 1000) % 50_000
    subject = with_tokens(stage.build("flash"), tokens.repeat(1, 2), monkeypatch)
    message = "below the best" if wrong else r"generated \(2, 10\) tokens, not \(2, 5\) \(a near tie at token 2"
    with pytest.raises(ParityError, match=message):
        check(subject, stage, reference)


@pytest.mark.parametrize("implementation", ["original", "flash"])
def test_random_weights_cannot_end_a_window(
    implementation: str, make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that like a timestamp best generate what is forced, and nothing but text."""
    timestamp = 50363 + 1238
    make = weights._make_tensor

    def make_fond_of_it(name: str, shape: torch.Size) -> torch.Tensor:
        tensor = make(name, shape)
        if name == "model.decoder.layer_norm.bias":
            tensor += 10
        if name == "model.decoder.embed_tokens.weight":
            tensor[timestamp] = 1.0
        return tensor

    monkeypatch.setattr(weights, "_make_tensor", make_fond_of_it)
    stage = make_stage(torch.float32)
    subject = stage.build(implementation)
    tokens = subject.generate()
    assert tokens.shape == (2, 5)
    assert int(tokens.max()) < stage.vocabulary.end_of_text
    assert subject.generate(suppress_tokens=list(stage.vocabulary.suppress)).shape[1] > 5  # they would have branched
