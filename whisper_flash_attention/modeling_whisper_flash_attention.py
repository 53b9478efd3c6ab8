"""Transformers' Whisper with attention and decoding swapped.

Everything that is not here is the original's: the classes below subclass Transformers' and override what differs.
"""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
from transformers.generation import GenerationMode
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoderLayer, WhisperModel

from . import decoding, kernels, layout
from .captured_decoding import GreedySession, on_decoding_stream
from .flash_attention import WhisperFlashAttention
from .kv_cache import CacheShape, WhisperKVCache

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

# A model may be called in two threads, and only one at a time may move its weights, take its session or count.
_state_lock = threading.Lock()


class WhisperFlashAttentionEncoderLayer(WhisperEncoderLayer):  # type: ignore[misc]
    """An encoder layer whose feed-forward part, at inference, is two products: the GELU rides on the first."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:  # noqa: D102
        fuses = (
            kernels.onednn_serves(hidden_states)
            and not self.training
            and kernels.is_exact_gelu(self.activation_fn)
            and kernels.is_plain(self.fc1, self.fc2)
            and not kernels.has_hooks(self.self_attn)
        )
        if not fuses:
            return super().forward(hidden_states, attention_mask, **kwargs)  # type: ignore[no-any-return]
        # Written so that nothing outlives its use: the activations of this layer set the peak of a small batch.
        attended, _ = self.self_attn(
            hidden_states=self.self_attn_layer_norm(hidden_states), attention_mask=attention_mask, **kwargs
        )
        hidden_states = attended.add_(hidden_states)
        expanded = kernels.linear(self.final_layer_norm(hidden_states), self.fc1.weight, self.fc1.bias, gelu=True)
        return kernels.linear(expanded, self.fc2.weight, self.fc2.bias, residual=hidden_states)


class WhisperFlashAttentionForConditionalGeneration(WhisperForConditionalGeneration):  # type: ignore[misc]
    """Whisper for transcription and translation, with exact memory-efficient attention and fast decoding.

    A drop-in for Transformers' `WhisperForConditionalGeneration`: same constructor, `from_pretrained`, weights, state
    dict, outputs and `generate`.

    Attributes:
        fast_decoding: Whether `generate` uses this project's decoding loop; set it to False for Transformers' own.
            `generate(..., fast_decoding=...)` decides for one call.
        cross_attention: How decoding attends to the encoder: `"stored"` keeps every layer's keys and values,
            `"shared"` attends to the encoder states themselves, which are `2 · layers` times smaller and give the
            same result, and `"auto"` takes what the tables of this project name as faster on the device.
    """

    fast_decoding: bool = True
    cross_attention: Literal["auto", "stored", "shared"] = "auto"
    _decoder_weights: layout.DecoderWeights | None = None
    _session: GreedySession | None = None
    _decoding_backend: dict[str, str] | None = None
    _captures: bool = True
    _word_timestamp_calls: int = 0
    _kept_implementation: str | None = None

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        # The classes differ in behaviour alone, so the modules that the original made become ours where they stand:
        # no second initialisation, and a seed gives the weights that it gives the original.
        for module in self.modules():
            if type(module) is WhisperAttention:
                module.__class__ = WhisperFlashAttention
            elif type(module) is WhisperEncoderLayer:
                module.__class__ = WhisperFlashAttentionEncoderLayer

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
        `linear` and `step`. Values name the kernel: `xformers`, `sdpa`, `matmul`, `eager`; for `cross` also what is
        attended to.
        """
        backends = {}
        for name, layers in (("encoder", self.model.encoder.layers), ("decoder", self.model.decoder.layers)):
            backend = getattr(layers[0].self_attn, "backend", None) if len(layers) else None
            if backend is not None:
                backends[name] = backend
        return backends | (self._decoding_backend or {})

    def generate(self, *args: Any, fast_decoding: bool | None = None, **kwargs: Any) -> Any:
        """Generate token ids, as the original's `generate` does, with the same arguments and one more.

        Args:
            args: As the original's.
            fast_decoding: Whether this project's decoding loop may be used; `self.fast_decoding` where None.
            kwargs: As the original's.

        Returns:
            As the original's.
        """
        fast = self.fast_decoding if fast_decoding is None else fast_decoding
        token = decoding.current_call.set(decoding.GenerateCall(model=self, fast=fast))
        try:
            with self._implementation_kept() if kwargs.get("return_token_timestamps") else nullcontext():
                return super().generate(*args, **kwargs)
        finally:
            decoding.current_call.reset(token)

    @contextmanager
    def _implementation_kept(self) -> Iterator[None]:
        """Undo what word timestamps do: the original switches to eager attention, and never back.

        The last of the calls that run at once puts back what the first has found.
        """
        with _state_lock:
            if self._word_timestamp_calls == 0:
                self._kept_implementation = self.config._attn_implementation
            self._word_timestamp_calls += 1
        try:
            yield
        finally:
            with _state_lock:
                self._word_timestamp_calls -= 1
                if self._word_timestamp_calls == 0:
                    self.config._attn_implementation = self._kept_implementation

    def generate_with_fallback(self, *args: Any, **named: Any) -> Any:
        """Generate one window of every audio, as the original does, with this project's loop where it can be used."""
        call = decoding.call_of(self)
        if call is None or args:
            return super().generate_with_fallback(*args, **named)
        if not (call.fast and self._can_decode_fast(named["generation_config"], named["kwargs"], named)):
            return super().generate_with_fallback(**self._with_known_states(call, named))
        kwargs = named["kwargs"] | {"custom_generate": decoding.decode}
        if kwargs.get("encoder_outputs") is None:
            config = self.config
            shape = (len(named["decoder_input_ids"]), config.max_source_positions, config.d_model)
            kwargs["encoder_outputs"] = decoding.DeferredEncoderOutputs(
                last_hidden_state=torch.empty((), dtype=self.dtype, device=self.device).expand(shape)
            )
            call.keeps_states = len(named["temperatures"]) > 1
        try:
            return super().generate_with_fallback(**named | {"kwargs": kwargs})
        except decoding.NotHandledError:
            return super().generate_with_fallback(**self._with_known_states(call, named))

    def _can_decode_fast(self, config: GenerationConfig, kwargs: dict[str, Any], named: dict[str, Any]) -> bool:
        """Whether nothing about a call is lost when Transformers hands it to a custom loop."""
        foreign = (
            "custom_generate",
            "assistant_model",
            "streamer",
            "past_key_values",
            "decoder_attention_mask",
        )
        if named.get("synced_gpus") or any(kwargs.get(key) is not None for key in foreign):
            return False
        if config.get_generation_mode() not in {GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE}:
            return False
        if config.cache_implementation is not None:
            return False
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            return False
        original = WhisperForConditionalGeneration
        overridden = (
            type(self).forward is not original.forward
            or type(self).prepare_inputs_for_generation is not original.prepare_inputs_for_generation
            or type(self.model) is not WhisperModel
        )
        # Hooks must see the calls they would see; dropout, if only in one layer, must drop.
        if overridden or any(module.training or kernels.has_hooks(module) for module in self.modules()):
            return False
        return layout.is_plain_decoder(self.model.decoder, self.proj_out)

    def _with_known_states(self, call: decoding.GenerateCall, named: dict[str, Any]) -> dict[str, Any]:
        """Hand Transformers' loop the encoder states that language detection has left, where it can take them."""
        config, kwargs = named["generation_config"], named["kwargs"]
        features = named["segment_input"]
        # A second temperature takes a part of the batch, which given encoder outputs would not follow.
        follows = len(named["temperatures"]) == 1 or len(features) == 1
        records = config.output_attentions or config.output_hidden_states
        if not follows or records or config.cache_implementation or kwargs.get("encoder_outputs") is not None:
            return named
        states = call.states_of(features)
        if states is None:
            return named
        return named | {"kwargs": kwargs | {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}}

    def detect_language(
        self,
        input_features: Tensor | None = None,
        encoder_outputs: Tensor | BaseModelOutput | None = None,
        generation_config: GenerationConfig | None = None,
        num_segment_frames: int = 3000,
    ) -> Tensor:
        """Detect the language of each audio, as the original does; `generate` then uses the same encoder states."""
        call = decoding.call_of(self)
        if call is not None and call.fast and input_features is not None and encoder_outputs is None:
            features = input_features[:, :, :num_segment_frames]
            with torch.no_grad():
                encoder_outputs = self.model.encoder(features)
            call.features, call.states = features, encoder_outputs[0]
            input_features = None
        return super().detect_language(  # type: ignore[no-any-return]
            input_features=input_features,
            encoder_outputs=encoder_outputs,
            generation_config=generation_config,
            num_segment_frames=num_segment_frames,
        )

    def decoder_weights(self) -> layout.DecoderWeights:
        """The decoder's weights laid out for decoding; laid out again where a parameter has got new storage."""
        decoder, projection = self.model.decoder, self.proj_out
        with _state_lock:
            weights = self._decoder_weights
            if weights is None or weights.storages != layout.storages_of(decoder, projection):
                weights = layout.lay_out(decoder, projection)
                self._decoder_weights = weights
            return weights

    def stores_cross_attention(self, batch: int) -> bool:
        """Whether decoding `batch` audios stores the cross-attention's keys and values."""
        if self.cross_attention == "auto":
            return kernels.prefers_stored_cross(self.device.type, batch)
        if self.cross_attention not in {"stored", "shared"}:
            raise ValueError(f'cross_attention is "auto", "stored" or "shared", not {self.cross_attention!r}.')
        return self.cross_attention == "stored"

    @contextmanager
    def greedy_session(
        self, shape: CacheShape, chooser: decoding.TokenChooser, *, stores_cross: bool, captures: bool
    ) -> Iterator[GreedySession | None]:
        """Lend the buffers and graphs of captured decoding for one call, the last call's where they fit.

        The block then runs on the stream of captured decoding.

        Args:
            shape: Dimensions of the cache.
            chooser: Ends of sequences.
            stores_cross: Whether cross keys and values are stored.
            captures: Whether the call can be captured; None is lent where it cannot or must not.
        """
        if not (captures and self._captures):
            yield None
            return
        weights, eos, pad = self.decoder_weights(), chooser.stopping.eos, chooser.pad
        with on_decoding_stream(weights.projection.device):
            with _state_lock:
                session, self._session = self._session, None
            if session is None or not session.serves(weights, shape, eos, pad, stores_cross=stores_cross):
                session = None  # lets go of the old buffers before the new ones are made
                session = GreedySession(weights, shape, eos, pad, stores_cross=stores_cross, captures=True)
            yield session
            self._session = session

    @contextmanager
    def uncaptured(self) -> Iterator[None]:
        """Decode without CUDA graphs in the block: slower, but every operator can be seen, counted and profiled."""
        self._captures = False
        try:
            yield
        finally:
            self._captures = True

    def note_decoding(self, cache: WhisperKVCache, *, captured: bool) -> None:
        """Remember which kernels served a call of `generate`'s loop, for `attention_backend`."""
        keys = cache.self_keys[0]
        is_shared = cache.cross_buffer is None
        with torch.no_grad():
            linear = "onednn" if kernels.onednn_serves(keys) else "torch"
        self._decoding_backend = {
            "decode": "sdpa" if kernels.prefers_fused(keys, keys) else "matmul",
            "cross": f"matmul over {'encoder states' if is_shared else 'stored keys'}",
            "linear": linear,
            "step": "graph" if captured else "eager",
        }

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The original's state dict: contiguous tensors, none sharing its memory, as every way of saving wants."""
        self._restore_layout()
        return super().state_dict(*args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save as the original does: same files, same names, same bytes."""
        self._restore_layout()
        return super().save_pretrained(*args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        """Set the mode; for training, parameters get PyTorch's own storage back, which optimisers may count on."""
        if mode:
            self._restore_layout()
        return super().train(mode)

    def _restore_layout(self) -> None:
        """Undo what decoding has done to the storage of the parameters; the next `generate` does it again."""
        with _state_lock:
            if self._decoder_weights is not None:
                self._decoder_weights = self._session = None
                layout.restore(self.model.decoder, self.proj_out)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        # .to(), .half() and the like give parameters new storage: let go of the old one first.
        self._decoder_weights = self._session = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: everything but the laid-out weights, which are views of the parameters."""
        state = copy.copy(self.__dict__)
        for name in ("_decoder_weights", "_session"):
            state.pop(name, None)
        return state
