"""`generate` with this project's decoding loops in it, where they can be used."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import EncoderDecoderCache, GenerationConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin
from transformers.models.whisper.modeling_whisper import WhisperModel

from . import cpu_library, decoding, kernels
from .captured_decoding import GreedySession, captures_on, on_decoding_stream
from .choosing import TokenChooser
from .encoding import DeferredEncoderOutputs
from .generate_call import GenerateCall, NotHandledError, call_of, current_call
from .kv_cache import CacheShape, InPlaceCache, WhisperKVCache
from .session_pool import SessionPool
from .weights import DecoderWeights

# A model may be called in two threads, and only one at a time may make its pool or count.
_state_lock = threading.Lock()


class FastGenerationMixin(WhisperGenerationMixin):  # type: ignore[misc]
    """Whisper's `generate`, in front of Transformers' in a model's bases.

    Attributes:
        fast_decoding: Whether `generate` uses this project's decoding loops; set it to False for Transformers' own.
            `generate(..., fast_decoding=...)` decides for one call.
    """

    fast_decoding: bool = True
    _sessions: SessionPool | None = None
    _decoding_backend: dict[str, str] | None = None
    _captures: bool = True
    _word_timestamp_calls: int = 0
    _kept_implementation: str | None = None

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
        token = current_call.set(GenerateCall(model=self, fast=fast))
        try:
            with self._implementation_kept() if kwargs.get("return_token_timestamps") else nullcontext():
                return super().generate(*args, **kwargs)
        finally:
            current_call.reset(token)

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
        call = call_of(self)
        if call is None or args:
            return super().generate_with_fallback(*args, **named)
        if not call.fast:
            return super().generate_with_fallback(**named)
        call.capacity = decoding.cache_capacity(self.config, named)
        if not decoding.can_decode(self, named):
            return super().generate_with_fallback(**self._with_known_states(call, named))
        kwargs = named["kwargs"] | {"custom_generate": decoding.decode}
        if kwargs.get("encoder_outputs") is None:
            config = self.config
            shape = (len(named["decoder_input_ids"]), config.max_source_positions, config.d_model)
            kwargs["encoder_outputs"] = DeferredEncoderOutputs.of_shape(*shape, self.dtype)
            call.keeps_states = len(named["temperatures"]) > 1
        try:
            return super().generate_with_fallback(**named | {"kwargs": kwargs})
        except NotHandledError:
            return super().generate_with_fallback(**self._with_known_states(call, named))

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Prepare a step of Transformers' loops as the original does; their cache becomes one written in place."""
        call = call_of(self)
        cache: Any = kwargs.get("past_key_values")
        is_new = type(cache) is EncoderDecoderCache and cache.get_seq_length() == 0
        if is_new and kwargs.get("is_first_iteration") and call is not None and call.capacity is not None:
            config = self.config
            kwargs["past_key_values"] = InPlaceCache.with_capacity(
                config.decoder_layers, call.capacity, config.max_source_positions
            )
        return super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[no-any-return]

    @property
    def is_overridden(self) -> bool:
        """Whether a subclass computes a step in another way than the original."""
        return (
            type(self).forward is not WhisperForConditionalGeneration.forward
            or type(self).prepare_inputs_for_generation is not FastGenerationMixin.prepare_inputs_for_generation
            or type(self.model) is not WhisperModel
        )

    def _with_known_states(self, call: GenerateCall, named: dict[str, Any]) -> dict[str, Any]:
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
        call = call_of(self)
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

    @contextmanager
    def greedy_session(
        self,
        weights: DecoderWeights,
        shape: CacheShape,
        chooser: TokenChooser,
        *,
        stores_cross: bool,
        hides: bool,
        captures: bool,
    ) -> Iterator[GreedySession | None]:
        """Lend the buffers and graphs of captured decoding for one call, those of an earlier call where they fit.

        The block then runs on the stream of captured decoding.

        Args:
            weights: The decoder.
            shape: Dimensions of the cache.
            chooser: Ends of sequences, and the rules about timestamps.
            stores_cross: Whether cross keys and values are stored.
            hides: Whether prompts are padded.
            captures: Whether the call can be captured; None is lent where it cannot or must not.
        """
        device = weights.vocabulary.weight.device
        if not (captures and self._captures and captures_on(device)):
            yield None
            return
        with _state_lock:
            pool = self._sessions = self._sessions or SessionPool()
        ends = (chooser.stopping.eos, chooser.pad, chooser.processor.timestamps)
        with (
            on_decoding_stream(device),
            pool.lend(weights, shape, *ends, stores_cross=stores_cross, hides=hides) as session,
        ):
            yield session

    @contextmanager
    def uncaptured(self) -> Iterator[None]:
        """Decode without CUDA graphs in the block: slower, but every operator can be seen, counted and profiled."""
        before, self._captures = self._captures, False
        try:
            yield
        finally:
            self._captures = before

    def note_decoding(self, cache: WhisperKVCache, *, captured: bool, compiled: bool = False) -> None:
        """Remember which kernels served a call of `generate`'s loop, for `attention_backend`."""
        if compiled:
            step = f"compiled for {cpu_library.LEVELS[cpu_library.level()]}"
            self._decoding_backend = {"decode": step, "cross": f"{step} over stored keys", "linear": step, "step": step}
            return
        keys = cache.self_keys[0]
        problem = cpu_library.why_not() if self.device.type == "cpu" else None
        is_shared = cache.cross_buffer is None
        with torch.no_grad():
            linear = "onednn" if kernels.onednn_serves(keys) else "torch"
        self._decoding_backend = {
            "decode": "sdpa" if kernels.prefers_fused(keys, keys) else "matmul",
            "cross": f"matmul over {'encoder states' if is_shared else 'stored keys'}",
            "linear": linear,
            "step": "graph" if captured else f"eager: {problem}" if problem else "eager",
        }
