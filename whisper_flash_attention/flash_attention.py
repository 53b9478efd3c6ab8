"""Stub, being written."""

from transformers.models.whisper.modeling_whisper import WhisperAttention


class WhisperFlashAttention(WhisperAttention):
    """Stub, being written."""
