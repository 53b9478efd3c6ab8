"""Whisper models small enough for a test: random, but with every special token in its place."""

from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from whisper_flash_attention import WhisperFlashAttentionForConditionalGeneration

# The vocabulary, in the order of the real one: text, end, start, languages, tasks, markers, timestamps.
TEXT_TOKENS = 200
EOS = 200
START = 201
LANGUAGES = {"<|en|>": 202, "<|fr|>": 203, "<|de|>": 204, "<|es|>": 205}
TASKS = {"translate": 206, "transcribe": 207}
START_OF_LM = 208
START_OF_PREVIOUS = 209
NO_SPEECH = 210
NO_TIMESTAMPS = 211
FIRST_TIMESTAMP = 212
SOURCE_POSITIONS = 50
WINDOW = 2 * SOURCE_POSITIONS  # mel frames, as 3000 are to the real 1500
# One more than there are tokens: like 51864 it divides into parts, which a kernel works on side by side.
VOCABULARY = FIRST_TIMESTAMP + SOURCE_POSITIONS + 2
TARGET_POSITIONS = 64
MEL_BINS = 80

SUPPRESSED = [1, 2, 7, START, *TASKS.values(), START_OF_LM, START_OF_PREVIOUS, NO_SPEECH]


class Pair(NamedTuple):
    """The same weights twice: in Transformers' class and in ours."""

    original: WhisperForConditionalGeneration
    flash: WhisperFlashAttentionForConditionalGeneration

    def eval(self) -> "Pair":
        return Pair(self.original.eval(), self.flash.eval())

    def train(self) -> "Pair":
        return Pair(self.original.train(), self.flash.train())


def tiny_config(**overrides: Any) -> WhisperConfig:
    """Two layers of four heads of 16; `overrides` are WhisperConfig's own arguments."""
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "num_mel_bins": MEL_BINS,
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "max_source_positions": SOURCE_POSITIONS,
        "max_target_positions": TARGET_POSITIONS,
        "decoder_start_token_id": START,
        "pad_token_id": EOS,
        "bos_token_id": EOS,
        "eos_token_id": EOS,
        "begin_suppress_tokens": None,
    }
    return WhisperConfig(**values | overrides)


def tiny_generation_config(multilingual: bool, config: WhisperConfig) -> GenerationConfig:
    """What the real checkpoints' generation_config.json holds, for the tiny vocabulary."""
    values: dict[str, Any] = {
        "decoder_start_token_id": START,
        "pad_token_id": EOS,
        "bos_token_id": EOS,
        "eos_token_id": EOS,
        "max_length": config.max_target_positions,
        "suppress_tokens": SUPPRESSED,
        "begin_suppress_tokens": [0, EOS],
        "no_timestamps_token_id": NO_TIMESTAMPS,
        "prev_sot_token_id": START_OF_PREVIOUS,
        "max_initial_timestamp_index": 20,
        "alignment_heads": [[0, 0], [config.decoder_layers - 1, config.decoder_attention_heads - 1]],
        "is_multilingual": multilingual,
        "return_timestamps": False,
    }
    if multilingual:
        values |= {"lang_to_id": LANGUAGES, "task_to_id": TASKS}
    return GenerationConfig(**values)


@torch.no_grad()
def spread_weights(model: torch.nn.Module, seed: int) -> None:
    """Fill `model` with weights that make its outputs vary.

    Transformers' initialisation has biases of zero and logits so close together that a wrong mask or a lost
    bias changes nothing that a test could see.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            parameter.copy_(1 + 0.1 * noise)
        elif parameter.dim() == 1:
            parameter.copy_(0.2 * noise)
        elif "embed_tokens" in name:
            # The output projection is tied to it: larger, and every token predicts itself.
            parameter.copy_(0.3 * noise)
        elif "embed_positions" in name:
            parameter.copy_(0.6 * noise)
        else:
            # Sharper attention than a trained model's, so that which keys are seen matters.
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.3
            parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)


def make_pair(
    dtype: torch.dtype = torch.float32, *, multilingual: bool = False, seed: int = 0, **overrides: Any
) -> Pair:
    """Build both classes from one configuration with one state dict, in evaluation mode."""
    original = WhisperForConditionalGeneration(tiny_config(**overrides))
    spread_weights(original, seed)
    flash = WhisperFlashAttentionForConditionalGeneration(tiny_config(**overrides))
    flash.load_state_dict(original.state_dict())
    for model in (original, flash):
        model.generation_config = tiny_generation_config(multilingual, model.config)
        model.to(dtype).eval()
    return Pair(original, flash)


def mel_features(
    batch: int = 1, frames: int = WINDOW, dtype: torch.dtype = torch.float32, seed: int = 0
) -> torch.Tensor:
    """Random log-mel features of shape (batch, MEL_BINS, frames), smooth in time as speech is."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, MEL_BINS, frames + 4, generator=generator)
    return torch.nn.functional.avg_pool1d(noise, 5, 1).mul(2).to(dtype)


def decoder_tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random text tokens of shape (batch, length) behind a start token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, TEXT_TOKENS, (batch, length), generator=generator)
    tokens[:, 0] = START
    return tokens
