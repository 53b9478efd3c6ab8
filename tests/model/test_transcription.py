"""What Whisper's own generate adds: timestamps, long-form, prompts, languages, temperature fallback."""

from typing import Any

import pytest
import torch

from .compare import OperationCounter, assert_same, encoder_calls
from .tiny import FIRST_TIMESTAMP, LANGUAGES, START_OF_PREVIOUS, VOCABULARY, WINDOW, Pair, make_pair, mel_features

# Transformers' own handling of `num_frames`, in the original as in ours.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

LONG = 3 * WINDOW + 30
LENGTHS = (LONG, WINDOW + 90, 2 * WINDOW)
FALLBACK = {
    "temperature": (0.0, 0.4, 0.9),
    "logprob_threshold": -1.0,
    "compression_ratio_threshold": 1.3,
    "no_speech_threshold": 0.02,
}


def frames_mask(lengths: tuple[int, ...], frames: int) -> torch.Tensor:
    return (torch.arange(frames) < torch.tensor(lengths)[:, None]).long()


def assert_transcribes_same(pair: Pair, features: torch.Tensor, **options: Any) -> Any:
    """Call both under one seed and compare all that comes back, segments included. Returns ours."""
    results = []
    for model in pair:
        torch.manual_seed(21)
        results.append(model.generate(features, **options))
    assert_same(results[1], results[0])
    return results[1]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"temperature": 0.8}], ids=str)
def test_timestamps(options: dict[str, Any], batch: int, pair: Pair) -> None:
    tokens = assert_transcribes_same(pair, mel_features(batch), return_timestamps=True, max_new_tokens=24, **options)
    assert (tokens[:, 0] >= FIRST_TIMESTAMP).all()


@pytest.mark.parametrize("extra", [{}, {"return_dict_in_generate": True, "output_scores": True}], ids=str)
def test_segments(extra: dict[str, Any], pair: Pair) -> None:
    output = assert_transcribes_same(
        pair, mel_features(2), return_timestamps=True, return_segments=True, max_new_tokens=24, **extra
    )
    assert len(output["segments"]) == 2
    assert output["segments"][0]


def test_initial_timestamp_is_limited(pair: Pair) -> None:
    for model in pair:
        model.generation_config.max_initial_timestamp_index = 3
    tokens = assert_transcribes_same(pair, mel_features(4), return_timestamps=True, max_new_tokens=6)
    assert (tokens[:, 0] <= FIRST_TIMESTAMP + 3).all()


WORDS = {
    "plain": {},
    "timestamps": {"return_timestamps": True},
    "segments": {"return_timestamps": True, "return_segments": True},
    "beams": {"num_beams": 2},
    "masked": {"attention_mask": frames_mask((WINDOW, 60), WINDOW)},
    "returned": {"return_dict_in_generate": True},
    "sampled": {"temperature": 0.8},
    "prompted": {"prompt_ids": torch.tensor([START_OF_PREVIOUS, 5, 6])},
}


@pytest.mark.parametrize("kind", list(WORDS))
def test_word_timestamps(kind: str, pair: Pair) -> None:
    output = assert_transcribes_same(
        pair, mel_features(2), return_token_timestamps=True, max_new_tokens=12, **WORDS[kind]
    )
    assert output["token_timestamps"].max() > 0


def test_word_timestamps_of_long_form(pair: Pair) -> None:
    assert_transcribes_same(
        pair,
        mel_features(3, LONG),
        attention_mask=frames_mask(LENGTHS, LONG),
        return_timestamps=True,
        return_token_timestamps=True,
        max_new_tokens=12,
    )


def test_word_timestamps_leave_nothing_behind(pair: Pair) -> None:
    """Neither the attention implementation nor the speed nor a result differs afterwards."""

    def implementations() -> list[str]:
        modules = (pair.flash, pair.flash.model, pair.flash.model.encoder, pair.flash.model.decoder)
        return [module.config._attn_implementation for module in modules]

    expected = pair.original.generate(mel_features(2), max_new_tokens=12)
    pair.flash.generate(mel_features(2), max_new_tokens=12)
    before = implementations()
    operations = operation_count(pair, mel_features(2))
    pair.flash.generate(mel_features(2), max_new_tokens=12, return_token_timestamps=True)
    assert implementations() == before
    assert_same(pair.flash.generate(mel_features(2), max_new_tokens=12), expected)
    assert operation_count(pair, mel_features(2)) == operations


def test_word_timestamps_that_fail_leave_nothing_behind(pair: Pair) -> None:
    before = pair.flash.config._attn_implementation

    def stop(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        raise RuntimeError("stopped from outside")

    with pytest.raises(RuntimeError, match="stopped from outside"):
        pair.flash.generate(mel_features(2), return_token_timestamps=True, stopping_criteria=[stop])
    assert pair.flash.config._attn_implementation == before


def operation_count(pair: Pair, features: torch.Tensor) -> int:
    with OperationCounter() as counter:
        pair.flash.generate(features, max_new_tokens=12)
    return counter.count


def test_no_alignment_heads_raises_as_the_original(pair: Pair) -> None:
    for model in pair:
        del model.generation_config.alignment_heads
        with pytest.raises(ValueError, match="alignment_heads"):
            model.generate(mel_features(1), return_token_timestamps=True)


LONG_FORM = {
    "plain": {},
    "conditioned": {"condition_on_prev_tokens": True},
    "fallback": FALLBACK,
    "conditioned fallback": FALLBACK | {"condition_on_prev_tokens": True},
    "beams": {"num_beams": 2},
    "beams conditioned": {"num_beams": 2, "condition_on_prev_tokens": True},
    "prompted": {"prompt_ids": torch.tensor([START_OF_PREVIOUS, 5, 6, 9])},
    "prompted throughout": {
        "prompt_ids": torch.tensor([START_OF_PREVIOUS, 5, 6, 9]),
        "prompt_condition_type": "all-segments",
        "condition_on_prev_tokens": True,
    },
    "static cache": {"cache_implementation": "static"},
    "segments": {"return_segments": True},
    "everything": {"return_dict_in_generate": True, "output_scores": True},
    "one call": {"force_unique_generate_call": True},
}


@pytest.mark.parametrize(
    ("kind", "batch"),
    [(kind, 3) for kind in LONG_FORM] + [("plain", 1), ("conditioned fallback", 1)],
)
def test_long_form(kind: str, batch: int, pair: Pair) -> None:
    """Rows of different length: the batch shrinks on the way, and conditioning pads it on the left."""
    options = dict(LONG_FORM[kind])
    if batch > 1:
        options["attention_mask"] = frames_mask(LENGTHS, LONG)
    assert_transcribes_same(pair, mel_features(batch, LONG), return_timestamps=True, max_new_tokens=14, **options)


def test_long_form_falls_back(pair: Pair) -> None:
    """The thresholds above do bite: temperatures above zero are reached, and silence is skipped."""
    plain = pair.flash.generate(mel_features(1, LONG), return_timestamps=True, max_new_tokens=14)
    torch.manual_seed(21)
    fallen = pair.flash.generate(mel_features(1, LONG), return_timestamps=True, max_new_tokens=14, **FALLBACK)
    assert plain.shape != fallen.shape or not torch.equal(plain, fallen)


def test_long_form_in_multilingual(multilingual_pair: Pair) -> None:
    assert_transcribes_same(
        multilingual_pair,
        mel_features(2, LONG),
        attention_mask=frames_mask(LENGTHS[:2], LONG),
        return_timestamps=True,
        condition_on_prev_tokens=True,
        max_new_tokens=12,
    )


def test_progress_is_reported(pair: Pair) -> None:
    reports: list[list[torch.Tensor]] = []
    for model in pair:
        seen: list[torch.Tensor] = []
        model.generate(mel_features(1, LONG), return_timestamps=True, max_new_tokens=12, monitor_progress=seen.append)
        reports.append(seen)
    assert len(reports[0]) > 1
    assert_same(reports[1], reports[0])


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"return_timestamps": True}], ids=str)
def test_prompt(options: dict[str, Any], pair: Pair) -> None:
    prompt = torch.tensor([START_OF_PREVIOUS, 5, 6, 9])
    prompted = assert_transcribes_same(pair, mel_features(2), prompt_ids=prompt, max_new_tokens=16, **options)
    plain = pair.flash.generate(mel_features(2), max_new_tokens=16, **options)
    assert plain.shape != prompted.shape or not torch.equal(plain, prompted)


def test_language_detection(multilingual_pair: Pair) -> None:
    """Rows may be of different languages."""
    features = mel_features(8)
    languages = [model.detect_language(features) for model in multilingual_pair]
    assert_same(languages[1], languages[0])
    assert len(languages[1].unique()) > 1
    assert set(languages[1].tolist()) <= set(LANGUAGES.values())
    output = assert_transcribes_same(multilingual_pair, features, max_new_tokens=8, return_dict_in_generate=True)
    assert output.sequences[:, 1].tolist() == languages[1].tolist()


@pytest.mark.parametrize(
    "options",
    [{}, {"task": "translate"}, {"num_beams": 2}, {"temperature": 0.5}, {"return_timestamps": True}],
    ids=str,
)
def test_language_detection_encodes_once(options: dict[str, Any], multilingual_pair: Pair) -> None:
    """The original runs its encoder twice: to find the language, and then to decode."""
    tokens, rows = [], []
    for model in multilingual_pair:
        torch.manual_seed(21)
        with encoder_calls(model) as calls:
            tokens.append(model.generate(mel_features(2), max_new_tokens=3, **options))
        rows.append(sum(calls))
    assert rows[0] >= 4
    assert rows[1] == rows[0] - 2
    assert_same(tokens[1], tokens[0])


def test_language_detection_of_long_form_encodes_no_window_twice(multilingual_pair: Pair) -> None:
    options = {"return_timestamps": True, "max_new_tokens": 8}
    windows: list[torch.Tensor] = []
    with encoder_calls(multilingual_pair.original) as calls:
        multilingual_pair.original.generate(mel_features(1, LONG), **options, monitor_progress=windows.append)
    assert len(calls) == len(windows) + 1
    with encoder_calls(multilingual_pair.flash) as calls:
        multilingual_pair.flash.generate(mel_features(1, LONG), **options)
    assert len(calls) == len(windows)
    assert_transcribes_same(multilingual_pair, mel_features(1, LONG), **options)


def test_encoder_outputs_of_one_call_do_not_serve_the_next(multilingual_pair: Pair) -> None:
    """The same tensor with other content must be encoded anew."""
    features = mel_features(2)
    for seed in (1, 2, 3):
        features.copy_(mel_features(2, seed=seed))
        assert_transcribes_same(multilingual_pair, features, max_new_tokens=6)


@pytest.mark.parametrize("language", ["fr", "<|de|>", "spanish", ["en", "fr"]], ids=str)
@pytest.mark.parametrize("task", [None, "transcribe", "translate"])
def test_language_and_task(language: Any, task: str | None, multilingual_pair: Pair) -> None:
    assert_transcribes_same(multilingual_pair, mel_features(2), language=language, task=task, max_new_tokens=10)


def test_language_is_given_without_encoding_twice(multilingual_pair: Pair) -> None:
    counts = []
    for model in multilingual_pair:
        with encoder_calls(model) as calls:
            model.generate(mel_features(2), language="fr", max_new_tokens=4)
        counts.append(calls)
    assert sum(counts[1]) == sum(counts[0])


def test_forced_decoder_ids(pair: Pair) -> None:
    """The old way of saying what comes first, which the published checkpoints still hold."""
    for model in pair:
        model.generation_config.forced_decoder_ids = [[1, LANGUAGES["<|de|>"]], [2, 7]]
    assert_transcribes_same(pair, mel_features(2), max_new_tokens=10)


def test_forced_decoder_ids_of_the_config(pair: Pair) -> None:
    for model in pair:
        model.config.forced_decoder_ids = [[1, LANGUAGES["<|de|>"]], [2, 7]]
    assert_transcribes_same(pair, mel_features(2), max_new_tokens=10)


@pytest.mark.parametrize("frames", [40, WINDOW - 1])
def test_less_than_a_window(frames: int, pair: Pair) -> None:
    assert_transcribes_same(pair, mel_features(2, frames), max_new_tokens=10)


def test_without_a_generation_config() -> None:
    """As a bare configuration builds it: no suppression, no timestamps, nothing of Whisper's."""
    pair = make_pair()
    for model in pair:
        model.generation_config = type(model.generation_config).from_model_config(model.config)
    tokens = assert_transcribes_same(pair, mel_features(2), max_new_tokens=10)
    assert (tokens < VOCABULARY).all()
