"""What came after the first Whispers: 128 mel bins, one language more, decoders far shallower than their encoders."""

import pytest
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from perf_tests.matrix.cases import CHECKPOINTS
from perf_tests.matrix.vocabulary import vocabulary_of
from whisper_flash_attention import WhisperFlashAttentionForConditionalGeneration

from .compare import assert_half_close, assert_same
from .tiny import Pair, spread_weights

NEWER = ("large-v3", "large-v3-turbo", "distil-large-v3")
ENCODER_LAYERS = 3
POSITIONS = 50
ENGLISH = {"language": "en", "task": "transcribe"}


def make_newer_pair(name: str, dtype: torch.dtype = torch.float32) -> Pair:
    """A checkpoint's vocabulary and mel bins, with narrow layers; as many decoder layers as it has, up to three."""
    dims = CHECKPOINTS[name]
    vocabulary = vocabulary_of(dims.vocab_size)
    config = WhisperConfig(
        vocab_size=dims.vocab_size,
        num_mel_bins=dims.mel_bins,
        d_model=64,
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=min(dims.decoder_layers, ENCODER_LAYERS),
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=POSITIONS,
        max_target_positions=64,
        decoder_start_token_id=vocabulary.prompt[0],
        pad_token_id=vocabulary.end_of_text,
        bos_token_id=vocabulary.end_of_text,
        eos_token_id=vocabulary.end_of_text,
        begin_suppress_tokens=None,
    )
    original = WhisperForConditionalGeneration(config)
    spread_weights(original, seed=1)
    flash = WhisperFlashAttentionForConditionalGeneration(config)
    flash.load_state_dict(original.state_dict())
    settings = vocabulary.generation_settings() | {"max_length": 64}
    settings["lang_to_id"] = {f"<|{code}|>": 50259 + index for index, code in enumerate(("en", "zh", "de"))}
    for model in (original, flash):
        model.generation_config = GenerationConfig(**settings)
        model.to(dtype).eval()
    return Pair(original, flash)


def features(batch: int = 2, frames: int = 2 * POSITIONS, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random log-mel features of 128 bins."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, 128, frames, generator=generator).to(dtype)


@pytest.fixture(params=NEWER)
def newer(request: pytest.FixtureRequest) -> Pair:
    return make_newer_pair(request.param)


@torch.no_grad()
def test_logits(newer: Pair) -> None:
    ids = torch.tensor([[50258, 50259, 50360, 50364, 11, 2425, 51865]])
    original, flash = (model(features(1), decoder_input_ids=ids) for model in newer)
    assert original.logits.shape[-1] == 51866
    assert_same(flash.logits, original.logits)


@pytest.mark.parametrize(
    "options",
    [
        ENGLISH,
        {"task": "translate", "language": "de"},
        {},
        ENGLISH | {"return_timestamps": True},
        ENGLISH | {"num_beams": 2},
    ],
    ids=["english", "translation", "detected language", "timestamps", "beams"],
)
def test_generate(options: dict[str, object], newer: Pair) -> None:
    original, flash = (model.generate(features(), max_new_tokens=12, **options) for model in newer)
    assert original.shape[0] == 2
    assert_same(flash, original)


def test_long_form(newer: Pair) -> None:
    """Several windows, each with its timestamps, of which only those within a window are left to choose."""
    long = features(1, frames=7 * POSITIONS)
    mask = torch.ones(1, long.shape[2], dtype=torch.long)
    options = {"return_timestamps": True, "return_segments": True, "max_new_tokens": 10} | ENGLISH
    options["suppress_tokens"] = list(range(50365 + POSITIONS + 1, 51866))
    original, flash = (model.generate(long, attention_mask=mask, **options) for model in newer)
    assert len(original["segments"][0]) > 1
    assert_same(flash["sequences"], original["sequences"])


def test_half_precision(half: torch.dtype) -> None:
    ids = torch.tensor([[50258, 50259, 50360, 50364, 11, 2425]])
    with torch.no_grad():
        reference = (
            make_newer_pair("large-v3-turbo").original(features(1).to(half).float(), decoder_input_ids=ids).logits
        )
        pair = make_newer_pair("large-v3-turbo", half)
        original, flash = (model(features(1, dtype=half), decoder_input_ids=ids).logits for model in pair)
    assert_half_close(flash, original, reference)


def test_the_feature_extractor_of_128_bins_fits() -> None:
    """From samples to tokens, as a user has them."""
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=1)
    samples = torch.randn(16000, generator=torch.Generator().manual_seed(0)).numpy()
    inputs = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features
    assert inputs.shape == (1, 128, 2 * POSITIONS)
    original, flash = (
        model.generate(inputs, max_new_tokens=6, **ENGLISH) for model in make_newer_pair("distil-large-v3")
    )
    assert_same(flash, original)
