from collections.abc import Callable
from typing import Any

import pytest
import torch

from perf_tests import schema
from perf_tests.measure.memory import measure_round
from perf_tests.parity import ParityError, Reference, check_parity, make_reference, read_outputs
from perf_tests.subject import Stage, Subject
from perf_tests.validation import validate

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
    subject = with_tokens(stage.build("flash"), reference.outputs.tokens[:, :-1], monkeypatch)
    with pytest.raises(ParityError, match=r"generated \(2, 4\) tokens, not \(2, 5\)"):
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


def test_a_near_tie_may_flip_in_half_precision(make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(torch.bfloat16)
    reference = make_reference(stage)
    tokens = reference.outputs.tokens.clone()
    tokens[0, 2] += 1
    monkeypatch.setattr("perf_tests.parity.measure_regret", lambda *args: 1e-4)
    record = check(with_tokens(stage.build("flash"), tokens, monkeypatch), stage, reference)
    assert record["tokens_equal"] is False
    assert record["first_difference"] == 2
    assert record["token_regret"] == 1e-4
