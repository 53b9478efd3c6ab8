"""The real openai/whisper-tiny.en on real speech: token by token what the original says."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperProcessor

from .compare import assert_half_close, assert_half_tokens_agree, assert_same
from .conftest import Speech
from .tiny import Pair

pytestmark = [
    pytest.mark.slow,
    # Transformers' own handling of `num_frames`, in the original as in ours.
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

PROMPT = [50257, 50362]  # start of transcript, no timestamps


def words(text: str) -> str:
    """In capitals, without punctuation."""
    return " ".join(re.findall(r"[A-Z']+", text.upper()))


@pytest.fixture(scope="session")
def clips(speech: Speech) -> list[np.ndarray]:
    """The clip, its beginning, its end with another loudness, and near-silence: four lengths."""
    noise = np.random.default_rng(0).normal(0, 1e-4, 4 * speech.sampling_rate).astype(np.float32)
    rate = speech.sampling_rate
    return [speech.samples, speech.samples[: 4 * rate], 0.3 * speech.samples[5 * rate :], noise]


@pytest.fixture(scope="session")
def clip_features(processor: WhisperProcessor, speech: Speech) -> torch.Tensor:
    return processor(speech.samples, sampling_rate=speech.sampling_rate, return_tensors="pt").input_features


@pytest.fixture(scope="session")
def batch_features(processor: WhisperProcessor, speech: Speech, clips: list[np.ndarray]) -> torch.Tensor:
    return processor(clips, sampling_rate=speech.sampling_rate, return_tensors="pt").input_features


@pytest.fixture(scope="session")
def make_long_inputs(processor: WhisperProcessor, speech: Speech) -> Callable[..., dict[str, torch.Tensor]]:
    """Makes a batch of long-form of the clip repeated, a row for each number of seconds."""
    rate = speech.sampling_rate
    repeated = np.tile(speech.samples, 6)

    def make(*seconds: int) -> dict[str, torch.Tensor]:
        return dict(
            processor(
                [repeated[: length * rate] for length in seconds],
                sampling_rate=rate,
                return_tensors="pt",
                truncation=False,
                padding="longest",
                return_attention_mask=True,
            )
        )

    return make


def assert_transcribes_same(pair: Pair, features: torch.Tensor, **options: Any) -> Any:
    results = []
    for model in pair:
        torch.manual_seed(5)
        results.append(model.generate(features, **options))
    assert_same(results[1], results[0], 1e-3)
    return results[1]


def test_words(real_pair: Pair, processor: WhisperProcessor, clip_features: torch.Tensor, speech: Speech) -> None:
    tokens = assert_transcribes_same(real_pair, clip_features)
    text = processor.batch_decode(tokens, skip_special_tokens=True)[0]
    assert words(text) == words(speech.text)


def test_words_in_bfloat16(
    real_bfloat16_pair: Pair, processor: WhisperProcessor, clip_features: torch.Tensor, speech: Speech
) -> None:
    tokens = real_bfloat16_pair.flash.generate(clip_features.bfloat16())
    assert words(processor.batch_decode(tokens, skip_special_tokens=True)[0]) == words(speech.text)


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "timestamps": {"return_timestamps": True},
    "segments": {"return_timestamps": True, "return_segments": True},
    "word timestamps": {"return_timestamps": True, "return_token_timestamps": True},
    "scores": {"return_dict_in_generate": True, "output_scores": True},
    "beams": {"num_beams": 4, "max_new_tokens": 30},
    "beams with timestamps": {"num_beams": 3, "return_timestamps": True, "max_new_tokens": 30},
    "sampling": {"do_sample": True, "temperature": 0.6},
    "no repeats": {"no_repeat_ngram_size": 2},
    "forced length": {"min_new_tokens": 60, "max_new_tokens": 60},
    "prompt": {"prompt_ids": torch.tensor([50360, 5911, 11, 262, 3554, 286])},
    "static cache": {"cache_implementation": "static", "max_new_tokens": 40},
    "fallback": {
        "return_timestamps": True,
        "temperature": (0.0, 0.4, 0.8),
        "max_new_tokens": 100,  # hot ones ramble on to the last position
        "compression_ratio_threshold": 1.35,
        "logprob_threshold": -1.0,
        "no_speech_threshold": 0.6,
    },
}


@pytest.mark.parametrize("name", list(OPTIONS))
@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
def test_options(
    name: str, batched: bool, real_pair: Pair, clip_features: torch.Tensor, batch_features: torch.Tensor
) -> None:
    """The batch's rows end at different steps, and one is all but silent: it would go on to the last position."""
    limit = {"max_new_tokens": 40} if batched else {}
    assert_transcribes_same(real_pair, batch_features if batched else clip_features, **limit | OPTIONS[name])


def test_row_of_a_batch_is_the_row_alone(
    real_pair: Pair, clip_features: torch.Tensor, batch_features: torch.Tensor
) -> None:
    alone = real_pair.flash.generate(clip_features)
    batched = real_pair.flash.generate(batch_features)
    assert torch.equal(batched[0, : alone.shape[1]], alone[0])


def test_last_position(real_pair: Pair, clip_features: torch.Tensor) -> None:
    """All 448 positions."""
    tokens = assert_transcribes_same(real_pair, clip_features, min_new_tokens=446, max_new_tokens=446)
    assert tokens.shape[1] >= 446
    with pytest.raises(ValueError, match="448"):
        real_pair.flash.generate(clip_features, max_new_tokens=447)


# Rows that end in different windows: in the third and in the second, or where a window takes long, in the second and in
# the first.
LONG, SHORTER = (66, 40), (44, 26)
LONG_FORM: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "plain": (LONG, {}),
    "conditioned": (SHORTER, {"condition_on_prev_tokens": True}),
    "fallback": (SHORTER, OPTIONS["fallback"] | {"condition_on_prev_tokens": True, "temperature": 0.0}),
    "beams": (SHORTER, {"num_beams": 2, "max_new_tokens": 40}),
    "words": (LONG, {"return_token_timestamps": True}),
}


@pytest.mark.parametrize("name", list(LONG_FORM))
def test_long_form(
    name: str,
    real_pair: Pair,
    make_long_inputs: Callable[..., dict[str, torch.Tensor]],
    processor: WhisperProcessor,
) -> None:
    seconds, options = LONG_FORM[name]
    inputs = make_long_inputs(*seconds)
    output = assert_transcribes_same(
        real_pair,
        inputs["input_features"],
        attention_mask=inputs["attention_mask"],
        **{"return_timestamps": True} | options,
    )
    tokens = output["sequences"] if isinstance(output, dict) else output
    text = processor.batch_decode(tokens, skip_special_tokens=True)[0]
    # So small a model skips one of the repetitions here and there: which, is a matter of the last digit.
    assert words(text).count("FELLOW AMERICANS") >= 2


def test_long_form_alone(real_pair: Pair, make_long_inputs: Callable[..., dict[str, torch.Tensor]]) -> None:
    assert_transcribes_same(real_pair, make_long_inputs(LONG[0])["input_features"], return_timestamps=True)


def test_assisted(real_pair: Pair, clip_features: torch.Tensor) -> None:
    """By the same checkpoint, which is always right and so goes through every branch of acceptance."""
    outputs = [
        model.generate(clip_features, assistant_model=assistant)
        for model, assistant in ((real_pair.original, real_pair.original), (real_pair.flash, real_pair.flash))
    ]
    assert_same(outputs[1], outputs[0])


@torch.no_grad()
def test_bfloat16_logits(real_pair: Pair, real_bfloat16_pair: Pair, batch_features: torch.Tensor) -> None:
    """At every position of the float32 transcript: within twice the original's own error."""
    tokens = real_pair.original.generate(batch_features, return_dict_in_generate=True).sequences
    features = batch_features.bfloat16()
    reference = real_pair.original(features.float(), decoder_input_ids=tokens).logits
    original, flash = (model(features, decoder_input_ids=tokens).logits for model in real_bfloat16_pair)
    assert_half_close(flash, original, reference)
    for position in range(tokens.shape[1]):
        assert_half_close(flash[:, position], original[:, position], reference[:, position])


def test_bfloat16_tokens(
    real_pair: Pair,
    real_bfloat16_pair: Pair,
    batch_features: torch.Tensor,
    record_property: Any,
) -> None:
    """Equal, or different first where two tokens are as good as tied. Says where, in the report."""
    features = batch_features.bfloat16()
    original, flash = (model.generate(features) for model in real_bfloat16_pair)
    length = min(original.shape[1], flash.shape[1])
    for row in range(len(features)):
        different = (original[row, :length] != flash[row, :length]).nonzero()
        record_property(f"first_difference_of_row_{row}", int(different[0]) if len(different) else None)
    assert_half_tokens_agree(flash, original, real_bfloat16_pair.original, real_pair.original, features, PROMPT)


def test_saved_again(real_pair: Pair, clip_features: torch.Tensor, tmp_path: Path) -> None:
    """After all that: the checkpoint comes out as it went in."""
    real_pair.flash.generate(clip_features)
    real_pair.flash.save_pretrained(tmp_path)
    loaded = type(real_pair.original).from_pretrained(tmp_path)
    assert_same(loaded.state_dict(), real_pair.original.state_dict(), 0.0)


README = Path(__file__).parents[2] / "README.md"


def test_readme_snippet(processor: WhisperProcessor, speech: Speech, tmp_path: Path) -> None:
    """The README's usage, as written but for the name of the data set, prints what was said."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    snippets = [block for block in blocks if "WhisperFlashAttentionForConditionalGeneration" in block]
    assert snippets
    script = snippets[0]
    named = re.compile(r'"hf-internal-testing/librispeech_asr_dummy"(, "clean")?')
    assert len(named.findall(script)) == 1
    (tmp_path / "snippet.py").write_text(named.sub(lambda _: repr(str(speech.folder)), script))
    result = subprocess.run(
        [sys.executable, tmp_path / "snippet.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(README.parent)},
    )
    assert result.returncode == 0, result.stderr
    assert words(speech.text) in words(result.stdout)
