"""One call of the model, forward and backward, against the original."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.modeling_outputs import BaseModelOutput

from .compare import assert_close, assert_half_close, assert_same, cache_tensors
from .tiny import EOS, SOURCE_POSITIONS, Pair, decoder_tokens, make_pair, mel_features

LENGTH = 9


def padded_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded decoder tokens as long-form makes them, and their mask: 0, 2 and 5 of padding."""
    tokens = decoder_tokens(3, LENGTH)
    mask = torch.ones_like(tokens)
    for row, padding in enumerate((0, 2, 5)):
        tokens[row, :padding] = EOS
        mask[row, :padding] = 0
    return tokens, mask


def assert_forward_same(pair: Pair, **inputs: Any) -> Any:
    """Call both with copies of `inputs`; compare all outputs. Returns ours."""

    def copied(value: Any) -> Any:
        return value.clone() if isinstance(value, torch.Tensor) else value

    original, flash = (model(**{key: copied(value) for key, value in inputs.items()}) for model in pair)
    assert_same(flash, original)
    return flash


def test_logits(pair: Pair) -> None:
    with torch.no_grad():
        assert_forward_same(pair, input_features=mel_features(2), decoder_input_ids=decoder_tokens(2, LENGTH))


def test_single_token(pair: Pair) -> None:
    assert_forward_same(pair, input_features=mel_features(1), decoder_input_ids=decoder_tokens(1, 1))


def test_logits_in_half_precision(half: torch.dtype) -> None:
    inputs = {"decoder_input_ids": decoder_tokens(2, LENGTH)}
    reference = make_pair().original(mel_features(2).to(half).float(), **inputs).logits
    original, flash = (model(mel_features(2, dtype=half), **inputs).logits for model in make_pair(half))
    assert_half_close(flash, original, reference)


@pytest.mark.parametrize("use_cache", [True, False])
def test_use_cache(use_cache: bool, pair: Pair) -> None:
    tokens = decoder_tokens(2, LENGTH)
    output = assert_forward_same(pair, input_features=mel_features(2), decoder_input_ids=tokens, use_cache=use_cache)
    assert (output.past_key_values is not None) == use_cache


def test_returns_a_tuple_when_asked(pair: Pair) -> None:
    assert_forward_same(
        pair, input_features=mel_features(2), decoder_input_ids=decoder_tokens(2, LENGTH), return_dict=False
    )


def test_padding_mask(pair: Pair) -> None:
    """A padded decoder attention mask must be obeyed, not dropped."""
    tokens, mask = padded_tokens()
    inputs = {"input_features": mel_features(3), "decoder_input_ids": tokens}
    masked = assert_forward_same(pair, **inputs, decoder_attention_mask=mask)
    unmasked = assert_forward_same(pair, **inputs)
    assert_close(masked.logits[0], unmasked.logits[0])
    assert (masked.logits[2, -1] - unmasked.logits[2, -1]).abs().max() > 0.1


def test_padding_mask_hides_the_padding(pair: Pair) -> None:
    """What stands in a masked place does not matter."""
    tokens, mask = padded_tokens()
    other = torch.where(mask == 0, (tokens + 17) % 100, tokens)
    real = mask.bool()
    outputs = [
        pair.flash(mel_features(3), decoder_input_ids=ids, decoder_attention_mask=mask).logits
        for ids in (tokens, other)
    ]
    assert_close(outputs[0][real], outputs[1][real])


def test_padding_mask_in_half_precision(half: torch.dtype) -> None:
    tokens, mask = padded_tokens()
    inputs = {"decoder_input_ids": tokens, "decoder_attention_mask": mask}
    reference = make_pair().original(mel_features(3).to(half).float(), **inputs).logits
    original, flash = (model(mel_features(3, dtype=half), **inputs).logits for model in make_pair(half))
    real = mask.bool()
    assert_half_close(flash[real], original[real], reference[real])


def test_full_mask_is_no_mask(pair: Pair) -> None:
    tokens = decoder_tokens(2, LENGTH)
    inputs = {"input_features": mel_features(2), "decoder_input_ids": tokens}
    masked = assert_forward_same(pair, **inputs, decoder_attention_mask=torch.ones_like(tokens))
    assert_close(masked.logits, pair.flash(**inputs).logits)


def test_four_dimensional_mask(pair: Pair) -> None:
    visible = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    visible[1, :, 3:, 1] = False
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    assert_forward_same(
        pair,
        input_features=mel_features(2),
        decoder_input_ids=decoder_tokens(2, LENGTH),
        decoder_attention_mask=mask,
    )


def test_position_ids(pair: Pair) -> None:
    tokens, mask = padded_tokens()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    assert_forward_same(
        pair,
        input_features=mel_features(3),
        decoder_input_ids=tokens,
        decoder_attention_mask=mask,
        decoder_position_ids=positions,
    )


def test_embeddings_instead_of_tokens(pair: Pair) -> None:
    embeddings = torch.randn(2, LENGTH, 64, generator=torch.Generator().manual_seed(1))
    assert_forward_same(pair, input_features=mel_features(2), decoder_inputs_embeds=embeddings)


@pytest.mark.parametrize("kind", ["model output", "tuple"])
def test_encoder_outputs_given(kind: str, pair: Pair) -> None:
    states = torch.randn(2, SOURCE_POSITIONS, 64, generator=torch.Generator().manual_seed(1))
    outputs = BaseModelOutput(last_hidden_state=states) if kind == "model output" else (states,)
    assert_forward_same(pair, encoder_outputs=outputs, decoder_input_ids=decoder_tokens(2, LENGTH))


def test_hidden_states(pair: Pair) -> None:
    output = assert_forward_same(
        pair,
        input_features=mel_features(2),
        decoder_input_ids=decoder_tokens(2, LENGTH),
        output_hidden_states=True,
    )
    assert len(output.decoder_hidden_states) == len(output.encoder_hidden_states) == 3


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_output_attentions_are_true(masked: bool, pair: Pair) -> None:
    """Equal to what the original gives with eager attention; off eager it gives empty tuples."""
    tokens, mask = padded_tokens()
    inputs: dict[str, Any] = {"decoder_input_ids": tokens, "output_attentions": True}
    if masked:
        inputs["decoder_attention_mask"] = mask
    flash = pair.flash(mel_features(3), **inputs)
    pair.original.set_attn_implementation("eager")
    expected = pair.original(mel_features(3), **inputs)
    for name, keys in (
        ("encoder_attentions", SOURCE_POSITIONS),
        ("decoder_attentions", LENGTH),
        ("cross_attentions", SOURCE_POSITIONS),
    ):
        assert len(flash[name]) == 2
        assert flash[name][0].shape[-1] == keys
        assert_same(flash[name], expected[name], path=name)
    assert_close(flash.logits, expected.logits, 1e-3)
    assert pair.flash(mel_features(3), decoder_input_ids=tokens).decoder_attentions is None


def test_output_attentions_does_not_linger(pair: Pair) -> None:
    inputs = {"input_features": mel_features(2), "decoder_input_ids": decoder_tokens(2, LENGTH)}
    before = pair.flash(**inputs).logits
    implementation = pair.flash.config._attn_implementation
    pair.flash(**inputs, output_attentions=True)
    assert pair.flash.config._attn_implementation == implementation
    assert torch.equal(pair.flash(**inputs).logits, before)


@pytest.mark.parametrize("chunks", [[1] * LENGTH, [3, 3, 3], [4, 1, 1, 3], [1, 8], [9]], ids=str)
def test_cached_equals_uncached(chunks: list[int], pair: Pair) -> None:
    """Step by step and several queries at once against a longer cache."""
    tokens = decoder_tokens(2, LENGTH)
    whole = pair.original(mel_features(2), decoder_input_ids=tokens).logits
    caches, start = [None, None], 0
    encoded = [model.get_encoder()(mel_features(2)) for model in pair]
    for length in chunks:
        logits = []
        for index, model in enumerate(pair):
            output = model(
                encoder_outputs=encoded[index],
                decoder_input_ids=tokens[:, start : start + length],
                past_key_values=caches[index],
                use_cache=True,
            )
            caches[index] = output.past_key_values
            logits.append(output.logits)
        assert_close(logits[1], logits[0])
        assert_close(logits[1], whole[:, start : start + length], 1e-3)
        start += length
        assert caches[1].get_seq_length() == start
    assert_same(cache_tensors(caches[1]), cache_tensors(caches[0]))


@pytest.mark.parametrize("chunks", [[4, 1, 1, 3], [9]], ids=str)
def test_static_cache(chunks: list[int], pair: Pair) -> None:
    """Keys that the cache has room for but nobody wrote must not be seen."""
    tokens = decoder_tokens(2, LENGTH)
    whole = pair.original(mel_features(2), decoder_input_ids=tokens).logits
    cache = EncoderDecoderCache(
        StaticCache(pair.flash.config, max_cache_len=20),
        StaticCache(pair.flash.config, max_cache_len=SOURCE_POSITIONS),
    )
    encoded = pair.flash.get_encoder()(mel_features(2))
    start = 0
    for length in chunks:
        ids = tokens[:, start : start + length]
        with torch.no_grad():
            logits = pair.flash(encoder_outputs=encoded, decoder_input_ids=ids, past_key_values=cache).logits
        assert_close(logits, whole[:, start : start + length], 1e-3)
        start += length


def test_cache_with_padding(pair: Pair) -> None:
    tokens, mask = padded_tokens()
    whole = pair.original(mel_features(3), decoder_input_ids=tokens, decoder_attention_mask=mask).logits
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for start, stop in ((0, 6), (6, 7), (7, 9)):
        logits = pair.flash(
            mel_features(3),
            decoder_input_ids=tokens[:, start:stop],
            decoder_attention_mask=mask[:, :stop],
            past_key_values=cache,
        ).logits
        assert_close(logits, whole[:, start:stop], 1e-3)


def gradients(model: torch.nn.Module, features: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
    """Loss and the gradient of every parameter."""
    labels = decoder_tokens(2, LENGTH, seed=5)
    labels[1, -3:] = -100
    loss = model(features, labels=labels, **options).loss
    loss.backward()
    result = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    assert all(value is not None for value in result.values())
    return result | {"loss": loss.detach()}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_gradients(checkpointing: bool, training: bool, pair: Pair) -> None:
    results = []
    for model in pair:
        model.train(training)
        if checkpointing:  # under its newer name where Transformers has that
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        results.append(gradients(model, mel_features(2)))
    original, flash = results
    assert original.keys() == flash.keys()
    for name in original:
        assert_close(flash[name], original[name], 1e-3)


def test_gradients_after_generate(pair: Pair) -> None:
    """Storage rearranged for decoding still trains."""
    pair.flash.generate(mel_features(2), max_new_tokens=4)
    original, flash = (gradients(model.train(), mel_features(2)) for model in pair)
    for name in original:
        assert_close(flash[name], original[name], 1e-3)


def test_gradients_in_half_precision(half: torch.dtype) -> None:
    reference = gradients(make_pair().original, mel_features(2).to(half).float())
    original, flash = (gradients(model, mel_features(2, dtype=half)) for model in make_pair(half))
    for name in reference:
        assert_half_close(flash[name], original[name], reference[name])


def test_gradient_of_the_features(pair: Pair) -> None:
    results = []
    for model in pair:
        features = mel_features(2).requires_grad_()
        model(features, labels=decoder_tokens(2, LENGTH)).loss.backward()
        results.append(features.grad)
    assert results[0].abs().max() > 0
    assert_close(results[1], results[0], 1e-3)


def test_dropout_in_training_draws_anew() -> None:
    pair = make_pair(attention_dropout=0.4).train()
    inputs = {"input_features": mel_features(2), "decoder_input_ids": decoder_tokens(2, LENGTH)}
    first, second = (pair.flash(**inputs).logits for _ in range(2))
    assert not torch.equal(first, second)
    assert_forward_same(pair.eval(), **inputs)


def test_autocast(pair: Pair) -> None:
    inputs = {"input_features": mel_features(2), "decoder_input_ids": decoder_tokens(2, LENGTH)}
    reference = pair.original(**inputs).logits
    with torch.autocast("cpu", torch.bfloat16):
        original, flash = (model(**inputs).logits for model in pair)
    assert_half_close(flash, original, reference)


@pytest.mark.parametrize(
    "inputs",
    [
        {"input_features": mel_features(1, frames=60), "decoder_input_ids": decoder_tokens(1, 2)},
        {"input_features": mel_features(1), "labels": decoder_tokens(1, 65)},
        {"input_features": mel_features(1)},
    ],
    ids=["short features", "long labels", "no tokens"],
)
def test_bad_input_raises_as_the_original(inputs: dict[str, Any], pair: Pair) -> None:
    with pytest.raises(ValueError) as expected:  # noqa: PT011
        pair.original(**inputs)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        pair.flash(**inputs)
    assert str(raised.value) == str(expected.value)
