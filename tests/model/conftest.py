"""Fixtures of the model's tests.

Tests marked slow want the real `openai/whisper-tiny.en`, from the Hub or its cache, and some seconds of real
speech: a data set with the columns `audio` and `text`, in the folder that `WHISPER_TEST_SPEECH` names.
"""

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from whisper_flash_attention import WhisperFlashAttentionForConditionalGeneration

from .tiny import Pair, make_pair

CHECKPOINT = "openai/whisper-tiny.en"
HALF_PRECISIONS = [torch.float16, torch.bfloat16]


class Speech(NamedTuple):
    """A clip and what is said in it."""

    folder: Path
    samples: np.ndarray
    sampling_rate: int
    text: str


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    """Silence what Transformers logs about tiny configurations."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    yield
    transformers.logging.set_verbosity(level)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def pair() -> Pair:
    """An English-only pair in float32."""
    return make_pair()


@pytest.fixture
def multilingual_pair() -> Pair:
    return make_pair(multilingual=True)


@pytest.fixture(params=HALF_PRECISIONS, ids=["float16", "bfloat16"])
def half(request: pytest.FixtureRequest) -> torch.dtype:
    """Each half precision."""
    return request.param


def _pretrained(cls: type, **options: Any) -> Any:
    """Load `cls` from the checkpoint, or skip: from the local cache first, for a missing network is slow."""
    try:
        return cls.from_pretrained(CHECKPOINT, local_files_only=True, **options)
    except OSError:
        pass
    try:
        return cls.from_pretrained(CHECKPOINT, **options)
    except OSError as error:
        pytest.skip(f"{CHECKPOINT} cannot be had: {str(error).splitlines()[0]}")


def _real_pair(dtype: torch.dtype) -> Pair:
    original = _pretrained(WhisperForConditionalGeneration, dtype=dtype)
    flash = _pretrained(WhisperFlashAttentionForConditionalGeneration, dtype=dtype)
    return Pair(original.eval(), flash.eval())


@pytest.fixture(scope="session")
def real_float32_models() -> Pair:
    return _real_pair(torch.float32)


@pytest.fixture(scope="session")
def real_bfloat16_models() -> Pair:
    return _real_pair(torch.bfloat16)


@pytest.fixture
def real_pair(real_float32_models: Pair) -> Iterator[Pair]:
    """The real checkpoint in float32. Shared: leave weights and configuration as they are."""
    yield real_float32_models
    # The original stays with eager attention after word timestamps.
    real_float32_models.original.set_attn_implementation("sdpa")


@pytest.fixture
def real_bfloat16_pair(real_bfloat16_models: Pair) -> Iterator[Pair]:
    """The real checkpoint in bfloat16. Shared like `real_pair`."""
    yield real_bfloat16_models
    real_bfloat16_models.original.set_attn_implementation("sdpa")


@pytest.fixture(scope="session")
def processor() -> WhisperProcessor:
    return _pretrained(WhisperProcessor)


@pytest.fixture(scope="session")
def speech() -> Speech:
    """The clip of the data set in WHISPER_TEST_SPEECH, decoded without torchcodec."""
    folder = os.environ.get("WHISPER_TEST_SPEECH")
    if not folder:
        pytest.skip("WHISPER_TEST_SPEECH does not name a folder with real speech")
    datasets = pytest.importorskip("datasets", reason="reading real speech needs `datasets`")
    soundfile = pytest.importorskip("soundfile", reason="decoding real speech needs `soundfile`")
    dataset = datasets.load_dataset(folder, split="validation")
    row = dataset.cast_column("audio", datasets.Audio(decode=False))[0]
    samples, sampling_rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
    return Speech(Path(folder), samples, sampling_rate, row["text"])
