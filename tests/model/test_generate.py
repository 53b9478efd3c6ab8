"""generate: the modes of decoding, against the original's tokens and scores."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig

from .compare import assert_half_close, assert_half_tokens_agree, assert_same
from .tiny import EOS, NO_TIMESTAMPS, SOURCE_POSITIONS, START, TARGET_POSITIONS, WINDOW, Pair, make_pair, mel_features

PROMPT = [START, NO_TIMESTAMPS]
RECORDED = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


def assert_generate_same(pair: Pair, features: torch.Tensor | None = None, **options: Any) -> Any:
    """Call both under one seed, tokens alone and then with all scores. Returns our tokens.

    The random state afterwards has to be the same too: a second call must go on as the original's would.
    """
    features = mel_features(3) if features is None else features
    results = []
    for recorded in (RECORDED, {}):
        outputs, states = [], []
        for model in pair:
            torch.manual_seed(11)
            outputs.append(model.generate(features, **options, **recorded))
            states.append(torch.get_rng_state())
        assert_same(outputs[1], outputs[0])
        assert_same(states[1], states[0])
        results.append(outputs[1])
    return results[-1]


def varied_end(pair: Pair, features: torch.Tensor) -> int:
    """A text token that as many rows as possible first generate at different steps."""
    tokens = pair.original.generate(features, max_new_tokens=40)

    def different_steps(token: int) -> int:
        steps = [(row == token).nonzero()[:1].flatten().tolist() for row in tokens]
        return len({step[0] for step in steps if step})

    token = max(tokens.unique().tolist(), key=different_steps)
    assert different_steps(token) >= 3
    return token


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 20},
    "one token": {"max_new_tokens": 1},
    "max_length": {"max_length": 12},
    "forced length": {"max_new_tokens": 30, "min_new_tokens": 30},
    "min_length": {"max_new_tokens": 30, "min_length": 20},
    "no eos": {"max_new_tokens": 20, "eos_token_id": None},
    "beams": {"max_new_tokens": 20, "num_beams": 3},
    "beams returned": {"max_new_tokens": 20, "num_beams": 3, "num_return_sequences": 3},
    "beams early": {"max_new_tokens": 20, "num_beams": 2, "early_stopping": True, "length_penalty": 0.4},
    "beams sampled": {"max_new_tokens": 12, "num_beams": 2, "do_sample": True},
    "sampling": {"max_new_tokens": 20, "do_sample": True, "temperature": 0.7},
    "sampling hot": {"max_new_tokens": 20, "do_sample": True, "temperature": 1.5, "top_k": 0},
    "top k": {"max_new_tokens": 20, "temperature": 1.0, "top_k": 5},
    "top p": {"max_new_tokens": 20, "temperature": 1.0, "top_p": 0.8},
    "min p": {"max_new_tokens": 20, "temperature": 1.0, "min_p": 0.1},
    "sampled twice": {"max_new_tokens": 9, "do_sample": True, "num_return_sequences": 2},
    "no repeats": {"max_new_tokens": 20, "no_repeat_ngram_size": 2},
    "repetition penalty": {"max_new_tokens": 20, "repetition_penalty": 1.4},
    "bad words": {"max_new_tokens": 20, "bad_words_ids": [[13], [47, 47], [190]]},
    "sequence bias": {"max_new_tokens": 20, "sequence_bias": [[[13], -4.0], [[47], 3.0]]},
    "forced end": {"max_new_tokens": 12, "forced_eos_token_id": EOS},
    "decaying": {"max_new_tokens": 30, "exponential_decay_length_penalty": (3, 1.4)},
    "normalised": {"max_new_tokens": 12, "renormalize_logits": True},
    "suppressed": {"max_new_tokens": 20, "suppress_tokens": [13, 47, 91]},
    "nothing suppressed": {"max_new_tokens": 20, "suppress_tokens": None, "begin_suppress_tokens": None},
    "begin suppressed": {"max_new_tokens": 20, "begin_suppress_tokens": [13, 47, 91, 190]},
    "no cache": {"max_new_tokens": 10, "use_cache": False},
    "dynamic cache": {"max_new_tokens": 10, "cache_implementation": "dynamic"},
    "static cache": {"max_new_tokens": 10, "cache_implementation": "static"},
    "attention mask": {"max_new_tokens": 10, "attention_mask": torch.ones(3, WINDOW, dtype=torch.long)},
    "allowed words": {"max_new_tokens": 10, "prefix_allowed_tokens_fn": lambda row, ids: [5, 6, 7 + row]},
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_options(name: str, pair: Pair) -> None:
    assert_generate_same(pair, **OPTIONS[name])


@pytest.mark.parametrize("name", ["greedy", "beams returned", "sampling", "static cache", "no cache"])
def test_options_of_the_generation_config(name: str, pair: Pair) -> None:
    """Stored in the model's own configuration instead of passed."""
    options = dict(OPTIONS[name])
    if "temperature" in options:  # Whisper's generate takes that one from its arguments alone
        options["temperature"] = 1.0
    for model in pair:
        model.generation_config.update(**options)
    assert_generate_same(pair)


@pytest.mark.parametrize("name", ["greedy", "no repeats", "beams"])
def test_given_generation_config(name: str, pair: Pair) -> None:
    values = pair.original.generation_config.to_dict() | OPTIONS[name]
    assert_generate_same(pair, generation_config=GenerationConfig(**values))


@pytest.mark.parametrize("batch", [1, 2, 5, 9])
def test_batch_sizes(batch: int, pair: Pair) -> None:
    tokens = assert_generate_same(pair, mel_features(batch), max_new_tokens=12)
    assert len(tokens) == batch


@pytest.mark.parametrize(
    "config",
    [
        {"encoder_layers": 1, "decoder_layers": 3},
        {"encoder_attention_heads": 2, "decoder_attention_heads": 8},
        {"d_model": 60, "encoder_attention_heads": 3, "decoder_attention_heads": 3},
        {"d_model": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
        {"encoder_ffn_dim": 96, "decoder_ffn_dim": 40},
        {"tie_word_embeddings": False},
        {"scale_embedding": True},
        {"activation_function": "relu"},
        {"num_mel_bins": 80, "max_source_positions": 30},
    ],
    ids=str,
)
def test_configurations(config: dict[str, Any]) -> None:
    pair = make_pair(**config)
    assert_generate_same(pair, mel_features(2, 2 * pair.original.config.max_source_positions), max_new_tokens=10)


def test_half_precision(half: torch.dtype) -> None:
    pair, reference = make_pair(half), make_pair().original
    features = mel_features(4, dtype=half)
    original, flash = (model.generate(features, max_new_tokens=30) for model in pair)
    assert_half_tokens_agree(flash, original, pair.original, reference, features, PROMPT)


def test_half_precision_logits(half: torch.dtype) -> None:
    """Those of every step, as long as the tokens before them are the same."""
    pair, reference = make_pair(half), make_pair().original
    features = mel_features(4, dtype=half)
    original, flash = (model.generate(features, max_new_tokens=20, **RECORDED) for model in pair)
    expected = reference(features.float(), decoder_input_ids=original.sequences[:, :-1]).logits
    compared = 0
    for row in range(4):
        agreeing = (flash.sequences[row] == original.sequences[row]).long().cumprod(0).sum() - len(PROMPT)
        for step in range(min(int(agreeing) + 1, 20)):
            assert flash.logits[step].dtype == torch.float32
            values = [output.logits[step][row].to(half) for output in (flash, original)]
            assert_half_close(*values, expected[row, len(PROMPT) - 1 + step])
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("beams", [1, 2])
def test_rows_end_at_different_steps(beams: int, pair: Pair) -> None:
    features = mel_features(5, seed=1)
    end = varied_end(pair, features)
    tokens = assert_generate_same(pair, features, max_new_tokens=40, eos_token_id=[EOS, end], num_beams=beams)
    ends = [(row == end).nonzero()[:1].flatten().tolist() for row in tokens]
    assert len({str(step) for step in ends}) >= 2


def test_single_end_token(pair: Pair) -> None:
    """An end of sequence that is not the padding."""
    features = mel_features(5, seed=1)
    assert_generate_same(pair, features, max_new_tokens=40, eos_token_id=varied_end(pair, features))


def test_sampled_rows_end_at_different_steps(pair: Pair) -> None:
    features = mel_features(5, seed=1)
    end = varied_end(pair, features)
    assert_generate_same(pair, features, max_new_tokens=30, eos_token_id=[EOS, end], temperature=0.8)


def test_ends_at_once(pair: Pair) -> None:
    """Every row stops after its first token."""
    assert_generate_same(pair, max_new_tokens=10, prefix_allowed_tokens_fn=lambda row, ids: [EOS])


@pytest.mark.parametrize("room", [0, 1])
def test_up_to_the_last_position(room: int, pair: Pair) -> None:
    """448 in the real model: the last position is used, none behind it is."""
    new_tokens = TARGET_POSITIONS - len(PROMPT) - room
    tokens = assert_generate_same(pair, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    assert tokens.shape[1] >= new_tokens


def test_default_length(pair: Pair) -> None:
    assert_generate_same(pair, mel_features(2))


def test_seeds(pair: Pair) -> None:
    """The same seed draws the same tokens, another seed others."""
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(pair.flash.generate(mel_features(2), max_new_tokens=20, do_sample=True, temperature=1.0))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_decoder_input_ids(length: int, pair: Pair) -> None:
    ids = torch.tensor([[*PROMPT, 5, 6, 7, 8, 9][:length]] * 3)
    assert_generate_same(pair, decoder_input_ids=ids, max_new_tokens=10)


def test_decoder_input_ids_that_differ(pair: Pair) -> None:
    ids = torch.tensor([[*PROMPT, 5, 6], [*PROMPT, 9, 1], [*PROMPT, 3, 3]])
    assert_generate_same(pair, decoder_input_ids=ids, max_new_tokens=10)
    assert_generate_same(pair, decoder_input_ids=ids, max_new_tokens=10, num_beams=2)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"temperature": 0.7}], ids=str)
def test_encoder_outputs(options: dict[str, Any], pair: Pair) -> None:
    """Encoded beforehand: a fresh copy for each call, for generate may expand them."""
    results = []
    for model in pair:
        with torch.no_grad():
            encoded = pair.original.get_encoder()(mel_features(2))
        torch.manual_seed(3)
        results.append(model.generate(encoder_outputs=encoded, max_new_tokens=10, **options))
    assert_same(results[1], results[0])
    torch.manual_seed(3)
    assert_same(results[1], pair.flash.generate(mel_features(2), max_new_tokens=10, **options))


@pytest.mark.parametrize("written", [0, 3])
def test_given_cache(written: int, pair: Pair) -> None:
    """An empty cache, and one that holds a prefix. Afterwards it holds what the original's holds."""
    ids = torch.tensor([[*PROMPT, 5, 6, 7]] * 2)
    caches, tokens = [], []
    for model in pair:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        if written:
            with torch.no_grad():
                model(mel_features(2), decoder_input_ids=ids[:, :written], past_key_values=cache, use_cache=True)
        tokens.append(model.generate(mel_features(2), decoder_input_ids=ids, past_key_values=cache, max_new_tokens=6))
        caches.append(cache)
    assert_same(tokens[1], tokens[0])
    assert_same(caches[1], caches[0])


def test_returned_cache(pair: Pair) -> None:
    """What is returned as `past_key_values` can be used to go on, and holds no unwritten places."""
    caches = []
    for model in pair:
        output = model.generate(mel_features(2), max_new_tokens=6, min_new_tokens=6, return_dict_in_generate=True)
        caches.append(output.past_key_values)
    assert_same(caches[1], caches[0])
    assert caches[1].get_seq_length() == len(PROMPT) + 5
    assert caches[1].cross_attention_cache.get_seq_length() == SOURCE_POSITIONS


@pytest.mark.parametrize("beams", [1, 3])
def test_everything_returned(beams: int, pair: Pair) -> None:
    """Scores, logits, hidden states and true attention weights, as the original's eager attention gives."""
    options = {"max_new_tokens": 6, "num_beams": beams}
    options |= {"output_attentions": True, "output_hidden_states": True}
    flash = pair.flash.generate(mel_features(2), **options, **RECORDED)
    pair.original.set_attn_implementation("eager")
    original = pair.original.generate(mel_features(2), **options, **RECORDED)
    assert_same(flash, original, 1e-3)
    assert len(flash.encoder_attentions) == 2
    assert len(flash.cross_attentions[0]) == 2
    assert_same(
        pair.flash.generate(mel_features(2), max_new_tokens=6),
        pair.original.generate(mel_features(2), max_new_tokens=6),
    )


@pytest.mark.parametrize("flag", ["output_scores", "output_logits", "output_hidden_states"])
def test_each_returned(flag: str, pair: Pair) -> None:
    options = {"max_new_tokens": 5, "return_dict_in_generate": True, flag: True}
    original, flash = (model.generate(mel_features(2), **options) for model in pair)
    assert_same(flash, original)


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_assisted(sampled: bool, pair: Pair) -> None:
    options: dict[str, Any] = {"max_new_tokens": 20}
    if sampled:
        options["temperature"] = 0.8
    tokens = []
    for model, assistant in zip(pair, make_pair(seed=3, decoder_layers=1), strict=True):
        torch.manual_seed(2)
        tokens.append(model.generate(mel_features(1), assistant_model=assistant, **options))
    assert_same(tokens[1], tokens[0])
    if not sampled:
        assert_same(tokens[1], pair.flash.generate(mel_features(1), **options))


@pytest.mark.parametrize("ours", ["model", "assistant"])
def test_assisted_by_the_other_class(ours: str, pair: Pair) -> None:
    assistants = make_pair(seed=3, decoder_layers=1)
    expected = pair.original.generate(mel_features(1), assistant_model=assistants.original, max_new_tokens=20)
    model, assistant = (
        (pair.flash, make_pair(seed=3, decoder_layers=1).original)
        if ours == "model"
        else (pair.original, assistants.flash)
    )
    assert_same(model.generate(mel_features(1), assistant_model=assistant, max_new_tokens=20), expected)


def test_prompt_lookup(pair: Pair) -> None:
    assert_generate_same(pair, mel_features(1), max_new_tokens=20, prompt_lookup_num_tokens=3)
