"""A drop-in for Hugging Face Whisper with exact, memory-efficient attention and fast decoding."""

from .flash_attention import WhisperFlashAttention
from .modeling_whisper_flash_attention import WhisperFlashAttentionForConditionalGeneration
from .stepping import WhisperDecodingStepper

__version__ = "0.1.0"

__all__ = [
    "WhisperDecodingStepper",
    "WhisperFlashAttention",
    "WhisperFlashAttentionForConditionalGeneration",
    "__version__",
]
