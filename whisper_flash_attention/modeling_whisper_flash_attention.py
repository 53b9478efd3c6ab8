"""Transformers' Whisper with attention and decoding swapped.

Everything that is not here is the original's: the classes below subclass Transformers' and override what differs.
"""

from typing import Any, Literal

from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper import modeling_whisper

from . import kernels
from .encoder_layers import Conv1d, WhisperEncoderLayer
from .flash_attention import WhisperFlashAttention
from .generation import FastGenerationMixin
from .weights import DecoderWeights

HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
"""Arguments of `from_pretrained` that say where a checkpoint is found."""


class WhisperFlashAttentionForConditionalGeneration(FastGenerationMixin, WhisperForConditionalGeneration):  # type: ignore[misc]
    """Whisper for transcription and translation, with exact memory-efficient attention and fast decoding.

    A drop-in for Transformers' `WhisperForConditionalGeneration`: same constructor, `from_pretrained`, weights, state
    dict, outputs and `generate`.

    Attributes:
        fast_decoding: Whether `generate` uses this project's decoding loops; set it to False for Transformers' own.
            `generate(..., fast_decoding=...)` decides for one call.
        cross_attention: How decoding attends to the encoder: `"stored"` keeps every layer's keys and values,
            `"shared"` attends to the encoder states themselves, which are `2 · layers` times smaller and give the
            same result, and `"auto"` takes what the tables of this project name as faster for the call.
    """

    cross_attention: Literal["auto", "stored", "shared"] = "auto"

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        # The classes differ in behaviour alone, so the modules that the original made become ours where they stand:
        # no second initialisation, and a seed gives the weights that it gives the original.
        for module in self.modules():
            if type(module) is modeling_whisper.WhisperAttention:
                module.__class__ = WhisperFlashAttention
            elif type(module) is modeling_whisper.WhisperEncoderLayer:
                module.__class__ = WhisperEncoderLayer
            elif type(module) is nn.Conv1d:
                module.__class__ = Conv1d

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, as the original does, but only one of Whisper.

        Raises:
            ValueError: The checkpoint is another model's; Transformers would load what fits and make up the rest.
        """
        if kwargs.get("config") is None and pretrained_model_name_or_path is not None:
            options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
            config, _ = WhisperConfig.get_config_dict(pretrained_model_name_or_path, **options)
            if (found := config.get("model_type", "whisper")) != "whisper":
                raise ValueError(
                    f"{pretrained_model_name_or_path} is a checkpoint of {found!r}; {cls.__name__} loads Whisper's, "
                    "such as openai/whisper-tiny.en."
                )
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @property
    def attention_backend(self) -> dict[str, str]:
        """Which kernel served which kind of call last, for the kinds that have been called.

        Keys: `encoder`; `decoder` (called as a module); in `generate`'s loop `decode` (self-attention), `cross`,
        `linear` and `step`. Values name the kernel: `xformers`, `compiled for …` (the CPU's level), `sdpa`, `matmul`,
        `eager`; for `cross` also what is attended to.
        """
        backends = {}
        for name, layers in (("encoder", self.model.encoder.layers), ("decoder", self.model.decoder.layers)):
            backend = getattr(layers[0].self_attn, "backend", None) if len(layers) else None
            if backend is not None:
                backends[name] = backend
        return backends | (self._decoding_backend or {})

    def decoder_weights(self) -> DecoderWeights:
        """The decoder's parameters as decoding reads them, where they lie now."""
        return DecoderWeights.of(self.model.decoder, self.proj_out)

    def stores_cross_attention(self, audios: int) -> bool:
        """Whether decoding `audios` together stores the cross-attention's keys and values."""
        if self.cross_attention == "auto":
            return kernels.prefers_stored_cross(self.device.type, audios)
        if self.cross_attention not in {"stored", "shared"}:
            raise ValueError(f'cross_attention is "auto", "stored" or "shared", not {self.cross_attention!r}.')
        return self.cross_attention == "stored"

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save as the original does: same files, same names, same bytes."""
        if type(self) is not WhisperFlashAttentionForConditionalGeneration:
            return super().save_pretrained(*args, **kwargs)
        # Transformers writes the name of the class into config.json, and who loads may not have ours: saved is the
        # original's view of this very model.
        original = WhisperForConditionalGeneration.__new__(WhisperForConditionalGeneration)
        original.__dict__ = self.__dict__
        return original.save_pretrained(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        # .to(), .half() and the like give parameters new storage: sessions and their graphs would hold on to the old.
        self._sessions = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: everything but the sessions, which belong to this model's memory."""
        state = self.__dict__.copy()
        state.pop("_sessions", None)
        return state
