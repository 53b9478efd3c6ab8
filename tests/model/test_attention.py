"""WhisperFlashAttention against WhisperAttention, module by module."""

from typing import Any, NamedTuple

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.models.whisper.modeling_whisper import WhisperAttention

from whisper_flash_attention import WhisperFlashAttention
from whisper_flash_attention.flash_attention import ATTENTION_NAME

from .compare import assert_close, assert_half_close, assert_same, cache_tensors
from .tiny import EOS, decoder_tokens, make_pair, mel_features, spread_weights, tiny_config

BATCH = 2


class Modules(NamedTuple):
    original: WhisperAttention
    flash: WhisperFlashAttention


def make_modules(
    width: int = 64,
    heads: int = 4,
    dtype: torch.dtype = torch.float32,
    implementation: str = "sdpa",
    **arguments: Any,
) -> Modules:
    """Both classes with the same weights. `arguments` are WhisperAttention's own."""
    config = tiny_config(d_model=width, encoder_attention_heads=heads, decoder_attention_heads=heads)
    config._attn_implementation = implementation
    original = WhisperAttention(width, heads, config=config, **arguments)
    spread_weights(original, seed=1)
    flash = WhisperFlashAttention(width, heads, config=config, **arguments)
    flash.load_state_dict(original.state_dict())
    return Modules(original.to(dtype).eval(), flash.to(dtype).eval())


def make_decoder_modules(**arguments: Any) -> Modules:
    return make_modules(is_decoder=True, is_causal=True, layer_idx=0, **arguments)


def states(length: int, width: int = 64, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, length, width, generator=generator).to(dtype)


def causal_mask(queries: int, keys: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """(BATCH, 1, queries, keys), aligned bottom-right: boolean, or additive where `dtype` is given."""
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).expand(BATCH, 1, -1, -1).clone()
    return mask if dtype is None else additive(mask, dtype)


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def padding_mask(queries: int, keys: int, padded: int) -> torch.Tensor:
    """Causal, and the first `padded` keys of the second entry are padding (which sees itself alone)."""
    mask = causal_mask(queries, keys)
    mask[1, :, :, :padded] = False
    mask |= torch.eye(queries, keys, dtype=torch.bool) & ~mask.any(-1, keepdim=True)
    return mask


def assert_modules_agree(modules: Modules, *arguments: Any, **options: Any) -> torch.Tensor:
    """Call both; compare outputs and, where the original has them, weights. Returns the output."""
    expected, expected_weights = modules.original(*arguments, **options)
    actual, weights = modules.flash(*arguments, **options)
    assert_close(actual, expected)
    if expected_weights is not None:
        assert_close(weights, expected_weights)
    return actual


@pytest.mark.parametrize("length", [1, 2, 7, 50])
def test_encoder(length: int) -> None:
    assert_modules_agree(make_modules(), states(length))


@pytest.mark.parametrize("length", [1, 2, 7, 50])
def test_causal(length: int) -> None:
    """No mask and `is_causal`: queries see the keys before them."""
    modules = make_decoder_modules()
    output = assert_modules_agree(modules, states(length))
    changed = states(length)
    changed[:, -1] += 1
    if length > 1:
        assert_close(modules.flash(changed)[0][:, :-1], output[:, :-1])


@pytest.mark.parametrize("queries", [1, 2, 7])
def test_cross(queries: int) -> None:
    modules = make_modules(is_decoder=True, layer_idx=0)
    assert_modules_agree(modules, states(queries), key_value_states=states(50, seed=1))


@pytest.mark.parametrize("queries", [1, 2, 5])
@pytest.mark.parametrize("written", [1, 3, 8])
def test_cached(queries: int, written: int) -> None:
    """Queries against a longer cache: the mask that Transformers hands over, or none for one query."""
    modules = make_decoder_modules()
    hidden = states(written + queries)
    caches = [EncoderDecoderCache(DynamicCache(), DynamicCache()) for _ in modules]
    mask = None if queries == 1 else causal_mask(queries, written + queries)
    outputs = []
    for module, cache in zip(modules, caches, strict=True):
        module(hidden[:, :written], past_key_values=cache)
        outputs.append(module(hidden[:, written:], past_key_values=cache, attention_mask=mask)[0])
        assert cache.get_seq_length() == written + queries
    assert_close(outputs[1], outputs[0])
    whole = modules.original(hidden)[0]
    assert_close(outputs[1], whole[:, written:])


def test_cross_cached() -> None:
    """The second call reads the cache: other encoder states given then must not matter."""
    modules = make_modules(is_decoder=True, layer_idx=0)
    for module in modules:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        module(states(3), key_value_states=states(50, seed=1), past_key_values=cache)
        again = module(states(1, seed=2), key_value_states=states(50, seed=3), past_key_values=cache)[0]
        fresh = module(states(1, seed=2), key_value_states=states(50, seed=1))[0]
        assert_close(again, fresh)
        assert cache.is_updated[0]
        assert cache.cross_attention_cache.get_seq_length() == 50


def test_caches_are_interchangeable() -> None:
    """A cache that one class filled serves the other."""
    modules = make_decoder_modules()
    hidden = states(6)
    for first, second in (modules, modules[::-1]):
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        first(hidden[:, :5], past_key_values=cache)
        output = second(hidden[:, 5:], past_key_values=cache)[0]
        assert_close(output, modules.original(hidden)[0][:, 5:])
        assert cache_tensors(cache)[0][0].shape == (BATCH, 4, 6, 16)


MASKS = {
    "boolean causal": lambda dtype: causal_mask(6, 6),
    "additive causal": lambda dtype: causal_mask(6, 6, dtype),
    "boolean padding": lambda dtype: padding_mask(6, 6, 2),
    "additive padding": lambda dtype: additive(padding_mask(6, 6, 2), dtype),
    "broadcast over the batch": lambda dtype: causal_mask(6, 6, dtype)[:1],
    "per head": lambda dtype: additive(padding_mask(6, 6, 2), dtype).expand(-1, 4, -1, -1),
    "finite bias": lambda dtype: torch.linspace(-2, 2, 36, dtype=dtype).view(1, 1, 6, 6),
    "not causal": lambda dtype: additive(~causal_mask(6, 6).flip(-1) | torch.eye(6, dtype=torch.bool), dtype),
}


@pytest.mark.parametrize("kind", list(MASKS))
def test_masks(kind: str) -> None:
    assert_modules_agree(make_decoder_modules(), states(6), attention_mask=MASKS[kind](torch.float32))


@pytest.mark.parametrize("kind", list(MASKS))
def test_masks_in_half_precision(kind: str, half: torch.dtype) -> None:
    modules = make_decoder_modules(dtype=half)
    reference = make_decoder_modules().original(states(6), attention_mask=MASKS[kind](torch.float32))[0]
    original, flash = (module(states(6, dtype=half), attention_mask=MASKS[kind](half))[0] for module in modules)
    assert_half_close(flash, original, reference)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("length", [1, 6, 50])
def test_half_precision(length: int, causal: bool, half: torch.dtype) -> None:
    arguments: dict[str, Any] = {"is_decoder": causal, "is_causal": causal, "layer_idx": 0}
    modules = make_modules(dtype=half, **arguments)
    reference = make_modules(**arguments).original(states(length))[0]
    original, flash = (module(states(length, dtype=half))[0] for module in modules)
    assert_half_close(flash, original, reference)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("mask", [None, "additive padding"])
def test_asked_for_implementation(implementation: str, mask: str | None) -> None:
    modules = make_decoder_modules(implementation=implementation)
    attention_mask = mask and MASKS[mask](torch.float32)
    assert_modules_agree(modules, states(6), attention_mask=attention_mask)


def test_output_attentions_gives_the_weights() -> None:
    """Also off eager, where the original has None to give."""
    eager = make_decoder_modules(implementation="eager").original
    modules = make_decoder_modules()
    mask = causal_mask(6, 6, torch.float32)
    expected, expected_weights = eager(states(6), attention_mask=mask)
    for options in ({"attention_mask": mask}, {}):
        output, weights = modules.flash(states(6), output_attentions=True, **options)
        assert_close(output, expected)
        assert_close(weights, expected_weights)


@pytest.mark.parametrize(("width", "heads"), [(60, 3), (8, 8), (4, 4), (66, 2), (300, 1), (12, 4)])
def test_odd_head_sizes(width: int, heads: int) -> None:
    """Head sizes that a kernel may refuse: 20, 1, 1, 33, 300, 3."""
    assert_modules_agree(make_modules(width, heads), states(9, width))
    assert_modules_agree(make_decoder_modules(width=width, heads=heads), states(9, width))
    cross = make_modules(width, heads, is_decoder=True, layer_idx=0)
    assert_modules_agree(cross, states(1, width), key_value_states=states(50, width, seed=1))


def test_width_not_divisible_by_heads() -> None:
    for attention in (WhisperAttention, WhisperFlashAttention):
        with pytest.raises(ValueError, match="divisible by num_heads"):
            attention(64, 5, config=tiny_config())


@pytest.mark.parametrize("bias", [True, False])
def test_without_bias(bias: bool) -> None:
    assert_modules_agree(make_modules(bias=bias), states(5))


@pytest.mark.parametrize("strides", ["transposed", "sliced", "expanded"])
def test_non_contiguous_input(strides: str) -> None:
    inputs = {
        "transposed": states(64, 9).transpose(1, 2),
        "sliced": states(18)[:, ::2],
        "expanded": states(1).expand(-1, 9, -1),
    }
    assert_modules_agree(make_modules(), inputs[strides])
    assert_modules_agree(make_decoder_modules(), inputs[strides])


GRADIENT_CASES = {
    "encoder": ({}, {}),
    "causal": ({"is_decoder": True, "is_causal": True, "layer_idx": 0}, {}),
    "masked": (
        {"is_decoder": True, "is_causal": True, "layer_idx": 0},
        {"attention_mask": additive(padding_mask(6, 6, 2), torch.float32)},
    ),
    "cross": ({"is_decoder": True, "layer_idx": 0}, {"key_value_states": states(50, seed=1)}),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", list(GRADIENT_CASES))
def test_gradients(case: str, training: bool) -> None:
    """Of the inputs and of every weight, in both modes."""
    arguments, options = GRADIENT_CASES[case]
    gradients = []
    for module in make_modules(**arguments):
        module.train(training)
        hidden = states(6).requires_grad_()
        inputs = {key: value.clone() for key, value in options.items()}
        if "key_value_states" in inputs:
            inputs["key_value_states"].requires_grad_()
        output = module(hidden, **inputs)[0]
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        gradients.append(
            {"hidden": hidden.grad}
            | {key: value.grad for key, value in inputs.items() if value.requires_grad}
            | {name: parameter.grad for name, parameter in module.named_parameters()}
        )
    original, flash = gradients
    assert original.keys() == flash.keys()
    for name in original:
        assert original[name].abs().max() > 0 or "k_proj.bias" in name
        assert_close(flash[name], original[name], 1e-3)


def test_dropout_only_in_training() -> None:
    modules = make_modules(dropout=0.5)
    assert_modules_agree(modules, states(6))
    modules.flash.train()
    first, second = (modules.flash(states(6))[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_zero_dropout_in_training_is_exact() -> None:
    modules = make_modules(dropout=0.0)
    for module in modules:
        module.train()
    assert_modules_agree(modules, states(6))


def test_dropout_has_the_right_mean_and_spread() -> None:
    """Over many draws: the mean is the undropped output, the spread the original's."""
    modules = make_modules(dropout=0.3)
    expected = modules.original(states(8))[0]
    many = states(8).repeat_interleave(400, dim=0)
    with torch.no_grad():
        original, flash = (module.train()(many)[0].view(BATCH, 400, 8, 64) for module in modules)
    scale = original.std(1).mean()
    assert (flash.mean(1) - expected).abs().mean() < 4 * scale / 400**0.5
    torch.testing.assert_close(flash.std(1).mean(), scale, rtol=0.1, atol=0)


@pytest.mark.parametrize("cls", [0, 1], ids=["original", "flash"])
def test_registered_under_its_name(cls: int) -> None:
    """Any model can ask for it, Transformers' own class too; and padding masks are made for it, not dropped."""
    pair = make_pair()
    tokens = decoder_tokens(2, 6)
    tokens[1, :3] = EOS
    inputs = {"decoder_input_ids": tokens, "decoder_attention_mask": (tokens != EOS).long()}
    expected = pair.original(mel_features(2), **inputs).logits
    model = pair[cls]
    model.set_attn_implementation(ATTENTION_NAME)
    assert_close(model(mel_features(2), **inputs).logits, expected)
    assert_close(
        model(mel_features(2), decoder_input_ids=tokens).logits,
        pair[1 - cls](mel_features(2), decoder_input_ids=tokens).logits,
    )
    tokens = [each.generate(mel_features(2), max_new_tokens=6) for each in (model, pair[1 - cls])]
    assert_same(tokens[0], tokens[1])
