"""Mistakes that this model's predecessor made, or that its tools invite: each a test.

The pitfalls of CUDA kernels alone are in test_cuda.py.
"""

import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.models.whisper.modeling_whisper import WhisperAttention

from whisper_flash_attention import WhisperFlashAttention

from .compare import assert_close, encoder_calls
from .tiny import EOS, Pair, decoder_tokens, mel_features, spread_weights, tiny_config

WIDTH, HEADS = 64, 4


@pytest.fixture
def attention() -> WhisperFlashAttention:
    """A decoder's self-attention."""
    config = tiny_config()
    config._attn_implementation = "sdpa"
    module = WhisperFlashAttention(WIDTH, HEADS, config=config, is_decoder=True, is_causal=True, layer_idx=0)
    spread_weights(module, seed=1)
    return module.eval()


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(2, 8, WIDTH, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def whole_attention(module: WhisperAttention, hidden: torch.Tensor) -> torch.Tensor:
    """Causal attention over all of `hidden`, written out."""
    query, key, value = (
        projection(hidden).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    scores = query @ key.transpose(2, 3) * module.scaling
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return module.out_proj((weights @ value).transpose(1, 2).flatten(2))


@torch.no_grad()
def cached_attention(
    module: WhisperAttention, hidden: torch.Tensor, written: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Write the first `written` positions into a cache, then return the output of those that follow."""
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    module(hidden[:, :written], past_key_values=cache)
    return module(hidden[:, written:], past_key_values=cache, attention_mask=mask)[0]


# 1. A causal mask aligned top-left lets a lone query see the first key alone.


def test_one_query_sees_every_cached_key(attention: WhisperFlashAttention, hidden: torch.Tensor) -> None:
    output = cached_attention(attention, hidden, written=7)
    assert_close(output, whole_attention(attention, hidden)[:, 7:])


@pytest.mark.parametrize("written", range(1, 7))
def test_several_queries_are_aligned_with_the_last_key(
    written: int, attention: WhisperFlashAttention, hidden: torch.Tensor
) -> None:
    """Without a mask too, where the original's kernel would align top-left."""
    expected = whole_attention(attention, hidden)[:, written:]
    queries = hidden.shape[1] - written
    mask = torch.ones(2, 1, queries, hidden.shape[1], dtype=torch.bool).tril(written)
    assert_close(cached_attention(attention, hidden, written, mask), expected)
    assert_close(cached_attention(attention, hidden, written), expected)


@pytest.mark.parametrize("key", range(8))
def test_every_key_matters(key: int, attention: WhisperFlashAttention, hidden: torch.Tensor) -> None:
    """To the queries from it on, and to none before. With weights where a lost key shows."""
    changed = hidden.clone()
    changed[:, key] += 2
    for written in (3, 7):
        before, after = (cached_attention(attention, states, written) for states in (hidden, changed))
        for query in range(written, 8):
            difference = (before - after)[:, query - written].abs().max()
            assert (difference > 1e-4) == (key <= query)


def test_tokens_depend_on_the_whole_past(pair: Pair) -> None:
    """What the 2023 mask hid: the decoder's next token depends on more than the first one."""
    tokens = decoder_tokens(1, 8)
    for position in range(1, 8):
        other = tokens.clone()
        other[0, position] += 1
        logits = []
        for ids in (tokens, other):
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            for step in range(8):
                with torch.no_grad():
                    output = pair.flash(
                        mel_features(1), decoder_input_ids=ids[:, step : step + 1], past_key_values=cache
                    )
            logits.append(output.logits)
        assert (logits[0] - logits[1]).abs().max() > 1e-3


# 2. A static cache is longer than what was written to it.


@pytest.mark.parametrize("queries", [1, 2, 5])
def test_static_cache_prefill(queries: int, attention: WhisperFlashAttention, hidden: torch.Tensor) -> None:
    """It arrives without a mask, with few queries and as many keys as the cache has room for."""
    cache = EncoderDecoderCache(
        StaticCache(attention.config, max_cache_len=20), StaticCache(attention.config, max_cache_len=20)
    )
    with torch.no_grad():
        output = attention(hidden[:, :queries], past_key_values=cache)[0]
    assert_close(output, whole_attention(attention, hidden[:, :queries]))


def test_static_cache_used_again(pair: Pair) -> None:
    """What an earlier, longer use left in it is not seen."""
    cache = EncoderDecoderCache(
        StaticCache(pair.flash.config, max_cache_len=20), StaticCache(pair.flash.config, max_cache_len=50)
    )
    for seed, length in ((1, 12), (2, 4)):
        cache.reset()
        tokens = decoder_tokens(2, length, seed=seed)
        features = mel_features(2, seed=seed)
        with torch.no_grad():
            output = pair.flash(features, decoder_input_ids=tokens, past_key_values=cache).logits
            assert_close(output, pair.original(features, decoder_input_ids=tokens).logits)


# 3. Off eager attention, weights asked for come as empty tuples; word timestamps leave the model eager.


def test_weights_sum_to_one(pair: Pair) -> None:
    output = pair.flash(mel_features(2), decoder_input_ids=decoder_tokens(2, 5), output_attentions=True)
    for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
        assert len(output[name]) == 2
        for weights in output[name]:
            assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    for weights in output.decoder_attentions:
        assert (weights.triu(1) == 0).all()


def test_word_timestamps_do_not_slow_the_model_down(pair: Pair) -> None:
    before = pair.flash.config._attn_implementation
    pair.flash.generate(mel_features(2), return_token_timestamps=True, max_new_tokens=4)
    assert pair.flash.config._attn_implementation == before
    assert pair.flash.model.decoder.layers[0].self_attn.config._attn_implementation == before


# 4. Finding the language encodes everything, and decoding encodes it again.


def test_language_detection_shares_the_encoder_run(multilingual_pair: Pair) -> None:
    with encoder_calls(multilingual_pair.flash) as calls:
        multilingual_pair.flash.generate(mel_features(2), max_new_tokens=1, force_unique_generate_call=True)
    assert sum(calls) == 2


# 5. xFormers is for CUDA alone, and may be absent or broken.

BROKEN_XFORMERS = """
    import sys, types, warnings
    warnings.simplefilter("error")
    sys.modules["xformers"] = sys.modules["xformers.ops"] = sys.modules["mslk"] = types.ModuleType("broken")
    import torch
    from transformers import WhisperConfig
    from whisper_flash_attention import WhisperFlashAttentionForConditionalGeneration

    config = WhisperConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=10,
        max_target_positions=12, decoder_start_token_id=1, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        begin_suppress_tokens=None,
    )
    model = WhisperFlashAttentionForConditionalGeneration(config).eval()
    tokens = model.generate(torch.zeros(1, 80, 20), max_new_tokens=3)
    print(model.attention_backend)
"""


def test_cpu_does_without_xformers() -> None:
    """In silence: on a CPU nobody misses it. (In a process of its own, for imports happen once.)"""
    command = [sys.executable, "-c", textwrap.dedent(BROKEN_XFORMERS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "xformers" not in result.stdout
    assert "xformers" not in result.stderr.lower()


# A padding mask that the attention interface does not know how to make is dropped in silence.


def test_padding_is_not_dropped(pair: Pair) -> None:
    tokens = decoder_tokens(2, 6)
    tokens[1, :3] = EOS
    mask = (tokens != EOS).long()
    for cached in (True, False):
        masked, unmasked = (
            pair.flash(
                mel_features(2), decoder_input_ids=tokens, decoder_attention_mask=value, use_cache=cached
            ).logits[:, -1]
            for value in (mask, None)
        )
        assert_close(masked[0], unmasked[0])
        assert (masked[1] - unmasked[1]).abs().max() > 0.1
