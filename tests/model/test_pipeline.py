"""The automatic-speech-recognition pipeline around our model, against the one around the original."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperProcessor, pipeline

from .compare import assert_same
from .conftest import Speech
from .tiny import Pair

pytestmark = [
    pytest.mark.slow,
    # Transformers' own handling of `num_frames`, in the original as in ours.
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


def recognisers(pair: Pair, processor: WhisperProcessor, **options: Any) -> list[Any]:
    return [
        pipeline(
            "automatic-speech-recognition",
            model=model,
            tokenizer=processor.tokenizer,
            feature_extractor=processor.feature_extractor,
            **options,
        )
        for model in pair
    ]


def audio(speech: Speech, repeats: int = 1) -> dict[str, Any]:
    """What the pipeline takes; it empties the dictionary, so a fresh one each time."""
    return {"raw": np.tile(speech.samples, repeats), "sampling_rate": speech.sampling_rate}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_timestamps": True},
        {"return_timestamps": "word"},
        {"generate_kwargs": {"num_beams": 2}},
        {"generate_kwargs": {"max_new_tokens": 5}},
    ],
    ids=str,
)
def test_one_clip(options: dict[str, Any], real_pair: Pair, processor: WhisperProcessor, speech: Speech) -> None:
    original, flash = (recogniser(audio(speech), **options) for recogniser in recognisers(real_pair, processor))
    assert_same(flash, original)
    assert "Americans" in flash["text"] or "max_new_tokens" in str(options)


@pytest.mark.parametrize("timestamps", [True, "word"])
def test_batch(timestamps: Any, real_pair: Pair, processor: WhisperProcessor, speech: Speech) -> None:
    results = []
    for recogniser in recognisers(real_pair, processor):
        clips = [audio(speech), {"raw": speech.samples[:50_000], "sampling_rate": 16_000}, audio(speech)]
        results.append(recogniser(clips, batch_size=2, return_timestamps=timestamps))
    assert_same(results[1], results[0])
    assert results[1][0]["text"] == results[1][2]["text"]


@pytest.mark.parametrize("timestamps", [False, "word"])
def test_chunks(timestamps: Any, real_pair: Pair, processor: WhisperProcessor, speech: Speech) -> None:
    original, flash = (
        recogniser(audio(speech, 4), return_timestamps=timestamps)
        for recogniser in recognisers(real_pair, processor, chunk_length_s=15, batch_size=2)
    )
    assert_same(flash, original)
    assert flash["text"].lower().count("fellow americans") >= 3


def test_long_form(real_pair: Pair, processor: WhisperProcessor, speech: Speech) -> None:
    """Without chunks: the model's own way through more than 30 s."""
    original, flash = (
        recogniser(audio(speech, 4), return_timestamps=True) for recogniser in recognisers(real_pair, processor)
    )
    assert_same(flash, original)
    assert flash["text"].count("fellow Americans") == 4


def test_bfloat16(real_bfloat16_pair: Pair, processor: WhisperProcessor, speech: Speech) -> None:
    (_, flash) = recognisers(real_bfloat16_pair, processor, dtype=torch.bfloat16)
    assert "ask what you can do for your country" in flash(audio(speech))["text"].lower()
