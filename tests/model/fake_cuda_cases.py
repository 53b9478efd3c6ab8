"""The branches for CUDA at the published dimensions: memory, kernels, and a step that waits for nothing.

`test_fake_cuda.py` runs this file in a process of its own.

What decides about memory, in units of u, the encoder states of a batch (1500 · d numbers for each audio), beside
weights and features. L are the decoder's layers, c what its cache takes: 0.04 L in `single`, 0.4 L in `batched`.

| | Transformers | flash, one audio | flash, a batch |
|---|---|---|---|
| encoder | 12: hidden states four times, normed, `fc1` and GELU | 2 L + c + 1 (L = 2: 9 + c) | 1 + c + 12 / 4 |
| prompt | 2 L + 1, and 2 that pass by: keys and values are copied twice | 2 L + c | 1 + c |
| step | 2 L + 1 + c | 2 L + c | 1 + c |

Flash has the buffers of its session all the time, 2 L + c. The encoder runs in those 2 L (`encoder_pass.py`) with one u
beside them, or five where `fc1` does not fit in; the projection writes what it makes to its place. A batch is encoded
in four parts, and decoding attends to the states.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from transformers import DynamicCache, EncoderDecoderCache, WhisperConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from perf_tests.matrix.cases import CHECKPOINTS, MEL_FRAMES, PRESETS, SETTINGS, Cell
from perf_tests.matrix.vocabulary import vocabulary_of
from whisper_flash_attention import WhisperFlashAttentionForConditionalGeneration
from whisper_flash_attention.captured_decoding import SPAN_STEP, GreedySession
from whisper_flash_attention.decoder import Decoder
from whisper_flash_attention.encoding import DeferredEncoderOutputs, encode
from whisper_flash_attention.generate_call import GenerateCall, current_call
from whisper_flash_attention.kv_cache import CacheShape
from whisper_flash_attention.session_pool import SessionPool

from .fake_cuda import CUDA, Watch, fake_cuda, register_guard

register_guard()


@pytest.fixture(scope="module", autouse=True)
def watch() -> Iterator[Watch]:
    """One for all tests, which share the models."""
    with fake_cuda() as watch:
        yield watch


@functools.cache
def whole_model(cls: type, checkpoint: str) -> tuple[WhisperForConditionalGeneration, list[nn.Module]]:
    """A checkpoint's model and all of its decoder's layers."""
    dimensions = CHECKPOINTS[checkpoint]
    config = WhisperConfig(
        vocab_size=dimensions.vocab_size,
        num_mel_bins=dimensions.mel_bins,
        d_model=dimensions.d_model,
        encoder_layers=dimensions.encoder_layers,
        decoder_layers=dimensions.decoder_layers,
        encoder_attention_heads=dimensions.heads,
        decoder_attention_heads=dimensions.heads,
        encoder_ffn_dim=dimensions.ffn,
        decoder_ffn_dim=dimensions.ffn,
    )
    model = cls(config).eval()
    return model, list(model.model.decoder.layers)


def make_model(cls: type, cell: Cell) -> Any:
    """The model of a cell; the one of its checkpoint that was there before is no more."""
    model, layers = whole_model(cls, cell.checkpoint)
    model.model.decoder.layers = nn.ModuleList(layers[: cell.decoder_layers])
    model.config.decoder_layers = cell.decoder_layers
    return model


class Flash:
    """A call of ours, part by part, as `decode` makes it."""

    def __init__(self, cell: Cell) -> None:
        self.model = make_model(WhisperFlashAttentionForConditionalGeneration, cell)
        self.weights = self.model.decoder_weights()
        self.batch, new_tokens, _ = SETTINGS[cell.setting]
        self.stores_cross = self.model.stores_cross_attention(self.batch)
        config = self.model.config
        self.shape = CacheShape(
            layers=config.decoder_layers,
            batch=self.batch,
            heads=config.decoder_attention_heads,
            head_dim=config.d_model // config.decoder_attention_heads,
            capacity=prompt_of(cell).shape[1] + new_tokens - 1,
            frames=config.max_source_positions,
        )

    def lend(self) -> Any:
        eos = torch.empty(1, dtype=torch.long)
        kind = {"stores_cross": self.stores_cross, "hides": False}
        return SessionPool().lend(self.weights, self.shape, eos, eos[0], None, **kind)

    def encode(self, session: GreedySession, features: torch.Tensor) -> torch.Tensor | None:
        """Fill the session with audio."""
        size = self.batch, self.shape.frames, self.model.config.d_model
        stand_in = DeferredEncoderOutputs.of_shape(*size, torch.float16)
        token = current_call.set(GenerateCall(model=self.model, fast=True))
        try:
            audio = (self.model, self.weights, stand_in, features, session.cache.shape, self.stores_cross)
            return encode(*audio, session)[1]
        finally:
            current_call.reset(token)

    def read_prompt(self, session: GreedySession, states: torch.Tensor | None, ids: torch.Tensor) -> None:
        session.ids[:, : ids.shape[1]] = ids
        logits = Decoder(self.weights, session.cache, states).read_prompt(ids)
        session.start(logits.float().argmax(dim=-1), ids.shape[1] + 1)


def features_of(cell: Cell) -> torch.Tensor:
    return torch.empty(SETTINGS[cell.setting].batch_size, CHECKPOINTS[cell.checkpoint].mel_bins, MEL_FRAMES)


def prompt_of(cell: Cell) -> torch.Tensor:
    length = len(vocabulary_of(CHECKPOINTS[cell.checkpoint].vocab_size).prompt)
    return torch.empty(SETTINGS[cell.setting].batch_size, length, dtype=torch.long)


def spans(session: GreedySession) -> list[int]:
    capacity = session.cache.shape.capacity
    return [min(span, capacity) for span in range(SPAN_STEP, capacity + SPAN_STEP, SPAN_STEP)]


def flash_peaks(cell: Cell, watch: Watch) -> dict[str, int]:
    """Bytes beside the weights in each part of a call; of the encoder and the projection together."""
    flash = Flash(cell)
    before, peaks = watch.alive, {}
    features, ids = features_of(cell), prompt_of(cell)
    with flash.lend() as session:
        if flash.stores_cross:
            watch.begin()
            states = flash.encode(session, features)
            peaks["encoder"] = watch.peak - before
        else:
            states, peaks["encoder"] = session.states, watch.alive - before
            peaks["encoder"] += batch_encoder_bytes(cell.checkpoint, cell.setting, watch)
        watch.begin()
        flash.read_prompt(session, states, ids)
        peaks["prompt"] = watch.peak - before
        watch.begin()
        session.step(spans(session)[-1])
        peaks["step"] = watch.peak - before
    return peaks


@functools.cache
def batch_encoder_bytes(checkpoint: str, setting: str, watch: Watch) -> int:
    """What ours takes beside session and features, which nothing of a decoder that attends to the states is in."""
    cell = Cell(checkpoint, 2, setting)
    flash, features = Flash(cell), features_of(cell)
    with flash.lend() as session:
        watch.begin()
        before = watch.alive
        flash.encode(session, features)
    return watch.peak - before


@functools.cache
def original_encoder_peak(checkpoint: str, setting: str, watch: Watch) -> int:
    """Of every depth of the decoder."""
    cell = Cell(checkpoint, CHECKPOINTS[checkpoint].decoder_layers, setting)
    model, before = make_model(WhisperForConditionalGeneration, cell), watch.alive
    features = features_of(cell)
    watch.begin()
    model.model.encoder(features)
    return watch.peak - before


def original_peaks(cell: Cell, watch: Watch) -> dict[str, int]:
    """Bytes beside the weights in each part of a call, as `generate` holds them."""
    peaks = {"encoder": original_encoder_peak(cell.checkpoint, cell.setting, watch)}
    model, before = make_model(WhisperForConditionalGeneration, cell), watch.alive
    features, ids = features_of(cell), prompt_of(cell)
    states = torch.empty(len(features), model.config.max_source_positions, model.config.d_model)
    call = {
        "encoder_outputs": BaseModelOutput(last_hidden_state=states),
        "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache()),
    }
    watch.begin()
    model(decoder_input_ids=ids, **call)
    peaks["prompt"] = watch.peak - before
    # All but the last token.
    for layer in call["past_key_values"].self_attention_cache.layers:
        batch, heads, _, head_dim = layer.keys.shape
        more = torch.empty(batch, heads, SETTINGS[cell.setting].new_tokens - 2, head_dim)
        layer.update(more, more)
        del more
    watch.begin()
    model(decoder_input_ids=ids[:, :1], **call)
    peaks["step"] = watch.peak - before
    return peaks


@pytest.mark.parametrize("cell", PRESETS["paper"].cells, ids=lambda cell: cell.id)
def test_memory(cell: Cell, watch: Watch) -> None:
    """At its peak a call of ours holds less than one of Transformers' does.

    By 2 MiB at least: PyTorch's allocator hands out blocks that are up to one larger than what was asked for.
    """
    original, flash = original_peaks(cell, watch), flash_peaks(cell, watch)
    print(cell.id, *(f"{part} {original[part] / 1e6:.1f} {flash[part] / 1e6:.1f}" for part in original))
    assert max(flash.values()) + 2 * 2**20 <= max(original.values())


WAITS = (DataDependentOutputException, DynamicOutputShapeException)
BASE = Cell("base.en", 6, "single")
BATCH = Cell("base.en", 4, "batched")


def test_kernels_of_the_encoder_and_the_projection(watch: Watch) -> None:
    """One by one: no copy, no addition beside a product of what the product could add, thirteen a layer."""
    flash, layers, convolved = Flash(BASE), 6, 4
    with flash.lend() as session:
        features = features_of(BASE)
        watch.begin()
        flash.encode(session, features)
    assert watch.kernels == Counter(
        {
            "convolution": 2 * convolved,
            "gelu_": 2 * convolved + layers,
            "add.out": convolved,
            "native_layer_norm": 2 * layers + 1,
            "addmm.out": 3 * layers,
            "mm.out": layers + BASE.decoder_layers,
            "memory_efficient_attention": layers,
            "add_.Tensor": 2 * layers,
            "addmm_": 2 * layers,
            "clamp_": layers,
            "baddbmm.out": BASE.decoder_layers,
        }
    )
    row = (torch.Size((1, 1500, 8, 64)), (1500 * 512, 512, 64, 1))
    assert watch.attentions == [[row] * 3] * layers
    assert flash.model.attention_backend["encoder"] == "xformers"


@pytest.mark.parametrize("cell", [BASE, BATCH], ids=lambda cell: cell.id)
def test_step(cell: Cell, watch: Watch) -> None:
    """At every span: on the device, in float16, nothing as large as what is attended to, and nothing read back."""
    flash = Flash(cell)
    config = flash.model.config
    with flash.lend() as session:
        assert (session.states is None) == (cell == BASE)
        flash.read_prompt(session, session.states, prompt_of(cell))
        kernels = []
        for span in spans(session):
            watch.begin()
            session.step(span)
            kernels.append(dict(watch.kernels))
            for result in watch.results:
                assert result.device == CUDA, result
                is_half = result.dtype == torch.float16 or not result.dtype.is_floating_point
                assert is_half or result.operator == "aten.native_layer_norm.default", result  # its statistics
                assert result.shape.numel() < max(
                    flash.batch * config.vocab_size + 1, config.max_source_positions * config.d_model
                ), result
    # The same, whatever the span.
    assert all(each == kernels[0] for each in kernels)
    products = kernels[0]["baddbmm"] + kernels[0]["bmm"]
    # Scores and mixture of self- and cross-attention; beside the states also what folds into them and out of them.
    assert products == (4 if cell == BASE else 6) * cell.decoder_layers
    assert not {"_to_copy", "cat", "_local_scalar_dense"} & set(kernels[0])


@pytest.mark.parametrize("wait", [torch.Tensor.item, bool, torch.nonzero], ids=["item", "bool", "nonzero"])
def test_a_step_that_waits_is_found(wait: Any, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests would say of a step that reads a flag back."""
    run_step = GreedySession.step

    def step(self: GreedySession, span: int) -> None:
        run_step(self, span)
        wait(self._unfinished.any())

    monkeypatch.setattr(GreedySession, "step", step)
    with Flash(BASE).lend() as session, pytest.raises(WAITS):
        session.step(SPAN_STEP // 2)
