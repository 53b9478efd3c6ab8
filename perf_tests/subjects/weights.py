"""Building the models: random weights from a seed, or the Hub's, in the class of each implementation."""

import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import sinusoids

from perf_tests.matrix.cases import CHECKPOINTS, Cell
from perf_tests.matrix.vocabulary import vocabulary_of
from whisper_flash_attention import WhisperFlashAttentionForConditionalGeneration

from .tensor_layout import Layout

if TYPE_CHECKING:
    from collections.abc import Mapping

SEED = 2023
WEIGHTS_VERSION = 1
# A kind of weights for rounds whose numbers do not matter: memory that is never touched.
ZEROS = "zeros"

MODEL_CLASSES: "Mapping[str, type[WhisperForConditionalGeneration]]" = {
    "original": WhisperForConditionalGeneration,
    "eager": WhisperForConditionalGeneration,
    "flash": WhisperFlashAttentionForConditionalGeneration,
    "flash_attention_2": WhisperForConditionalGeneration,
    "flash_attention_3": WhisperForConditionalGeneration,
}
LOAD_ARGUMENTS: "Mapping[str, dict[str, Any]]" = {
    "original": {},
    "eager": {"attn_implementation": "eager"},
    "flash": {},
    "flash_attention_2": {"attn_implementation": "flash_attention_2"},
    "flash_attention_3": {"attn_implementation": "flash_attention_3"},
}


class WeightsUnavailableError(RuntimeError):
    """The Hub's checkpoint cannot be had; the message says which, and why."""


class Weights:
    """The weights of one cell on the host, and the models made from them.

    Every model gets its own copy, so that one that rearranges its storage cannot touch another.

    Args:
        cell: Of which checkpoint and depth.
        kind: ``random``, ``pretrained`` or ``ZEROS``.
        other: Of another cell. Random tensors that the two have in common, as models of one checkpoint have at every
            depth, are taken from there.
    """

    def __init__(self, cell: Cell, kind: str, other: "Weights | None" = None) -> None:
        self.cell = cell
        self.kind = kind
        self._at_hand = False
        is_kin = other is not None and (other.cell.checkpoint, other.kind) == (cell.checkpoint, kind)
        self._random: dict[torch.dtype, dict[str, torch.Tensor]] = other._random if other and is_kin else {}

    def build(self, implementation: str, device: torch.device, dtype: torch.dtype) -> WhisperForConditionalGeneration:
        """Build ``implementation`` on ``device`` in ``dtype``, in evaluation mode.

        Raises:
            WeightsUnavailableError: the Hub's checkpoint cannot be had.
        """
        model_class, arguments = MODEL_CLASSES[implementation], LOAD_ARGUMENTS[implementation]
        if self.kind == "pretrained":
            model = self._load(model_class, dtype=dtype, **arguments)
        else:
            config = make_config(self.cell)
            state = self._state_dict(config, dtype)
            if self.kind == "random" and device.type == "cpu":
                state = {name: tensor.clone() for name, tensor in state.items()}
            model = model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype, **arguments)
            settings = vocabulary_of(config.vocab_size).generation_settings()
            model.generation_config = GenerationConfig(**settings)
        model.eval()
        model.to(device)
        return model

    def _state_dict(self, config: WhisperConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        layouts = make_layouts(config)
        if self.kind == ZEROS:
            return {name: layout._replace(dtype=dtype).zeros() for name, layout in layouts.items()}
        exact = self._random.setdefault(torch.float32, {})
        exact |= make_state_dict({name: layout for name, layout in layouts.items() if name not in exact})
        rounded = self._random.setdefault(dtype, {})
        rounded |= {name: exact[name].to(dtype) for name in layouts if name not in rounded}
        return {name: rounded[name] for name in layouts}

    def _load(
        self, model_class: type[WhisperForConditionalGeneration], **arguments: Any
    ) -> WhisperForConditionalGeneration:
        name = CHECKPOINTS[self.cell.checkpoint].hub_id
        try:
            # Asked once: a model that moves on in memory is built again and again.
            model = model_class.from_pretrained(name, local_files_only=self._at_hand, **arguments)
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            raise WeightsUnavailableError(f"{name} is neither in the Hub's cache nor to be had: {reason}") from None
        self._at_hand = True
        return model


def make_config(cell: Cell) -> WhisperConfig:
    """The checkpoint's published configuration, with the cell's number of decoder layers."""
    dims = CHECKPOINTS[cell.checkpoint]
    vocabulary = vocabulary_of(dims.vocab_size)
    return WhisperConfig(
        vocab_size=dims.vocab_size,
        num_mel_bins=dims.mel_bins,
        d_model=dims.d_model,
        encoder_layers=dims.encoder_layers,
        decoder_layers=cell.decoder_layers,
        encoder_attention_heads=dims.heads,
        decoder_attention_heads=dims.heads,
        encoder_ffn_dim=dims.ffn,
        decoder_ffn_dim=dims.ffn,
        bos_token_id=vocabulary.end_of_text,
        eos_token_id=vocabulary.end_of_text,
        pad_token_id=vocabulary.end_of_text,
        decoder_start_token_id=vocabulary.prompt[0],
        begin_suppress_tokens=None,
    )


def make_layouts(config: WhisperConfig) -> dict[str, Layout]:
    """What the tensors of a state dict for ``config`` look like, by name; the tied projection has none of its own."""
    with torch.device("meta"):
        state = WhisperForConditionalGeneration(config).state_dict()
    return {name: Layout.of(tensor) for name, tensor in state.items() if name != "proj_out.weight"}


def make_state_dict(layouts: "Mapping[str, Layout]") -> dict[str, torch.Tensor]:
    """Random float32 weights of these names and shapes, each tensor from a seed of its own (its name's).

    So a model with fewer decoder layers shares the tensors it has with the deeper one. Unlike Transformers'
    initialisation (all of it 0.02, biases zero, attention next to uniform) the scales are a trained model's:
    peaked attention, biases and layer norms that count, logits that depend on audio and on every earlier
    token. An error in a mask or a cache then shows in the logits instead of drowning.
    """
    # One tensor takes one core.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        tensors = pool.map(_make_tensor, layouts, (layout.shape for layout in layouts.values()))
        return dict(zip(layouts, tensors, strict=True))


def _make_tensor(name: str, shape: torch.Size) -> torch.Tensor:
    if name == "model.encoder.embed_positions.weight":
        positions: torch.Tensor = sinusoids(*shape)
        return positions
    generator = torch.Generator().manual_seed(SEED + zlib.crc32(name.encode()))
    # Uniform: a fifth of the time of normal numbers. Its standard deviation is the limit over sqrt(3).
    limit = _deviation(name, shape) * math.sqrt(3)
    is_scale = "layer_norm" in name and name.endswith("weight")
    return torch.empty(shape).uniform_(-limit, limit, generator=generator).add_(float(is_scale))


def _deviation(name: str, shape: torch.Size) -> float:
    """The standard deviation for a tensor of this name."""
    if "layer_norm" in name:
        return 0.2
    if "embed" in name or name.endswith("bias"):
        return 0.05
    gain = 1.0
    if "q_proj" in name or "k_proj" in name:
        gain = 2.0  # peaks attention
    elif "out_proj" in name or "fc2" in name:
        gain = 0.5  # keeps the residual stream from growing with depth
    return gain / math.sqrt(shape[1:].numel())
