"""Stub, being written."""

from transformers import WhisperForConditionalGeneration


class WhisperFlashAttentionForConditionalGeneration(WhisperForConditionalGeneration):
    """Stub, being written."""

    @property
    def attention_backend(self) -> dict[str, str]:
        """Which kernel served which kind of call, e.g. ``{"encoder": "sdpa", "decode": "matmul"}``."""
        return {"encoder": "sdpa", "decode": "sdpa"}
