"""Checkpoints that are not ours to load."""

from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from whisper_flash_attention import WhisperFlashAttentionForConditionalGeneration


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a checkpoint of 'bert'; .* loads Whisper's"):
        WhisperFlashAttentionForConditionalGeneration.from_pretrained(tmp_path)


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=tmp_path.name):
        WhisperFlashAttentionForConditionalGeneration.from_pretrained(tmp_path)
