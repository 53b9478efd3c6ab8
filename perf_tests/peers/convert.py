"""A Transformers Whisper in the formats of its peers: CTranslate2's folder, openai-whisper's state dict."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from perf_tests.matrix.cases import CHECKPOINTS, Cell
from perf_tests.matrix.vocabulary import vocabulary_of
from perf_tests.subjects.weights import Weights

# Pieces of a name in Transformers' state dict, and openai-whisper's for them.
OPENAI_NAMES = (
    (r"^model\.", ""),
    (r"embed_positions\.weight", "positional_embedding"),
    (r"embed_tokens", "token_embedding"),
    (r"\blayers\.", "blocks."),
    (r"\bself_attn", "attn"),
    (r"\bencoder_attn", "cross_attn"),
    (r"final_layer_norm", "mlp_ln"),
    (r"attn_layer_norm", "attn_ln"),
    (r"encoder\.layer_norm", "encoder.ln_post"),
    (r"decoder\.layer_norm", "decoder.ln"),
    (r"\b([qkv])_proj", lambda match: {"q": "query", "k": "key", "v": "value"}[match[1]]),
    (r"\bout_proj", "out"),
    (r"\bfc1", "mlp.0"),
    (r"\bfc2", "mlp.2"),
)


def openai_name(name: str) -> str:
    """openai-whisper's name for a tensor of Transformers' state dict."""
    for pattern, replacement in OPENAI_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def openai_state_dict(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Transformers' state dict under openai-whisper's names; the projection is tied to the embedding there."""
    return {openai_name(name): tensor for name, tensor in state.items() if name != "proj_out.weight"}


def openai_dimensions(config: Any) -> dict[str, int]:
    """The arguments of openai-whisper's ``ModelDimensions`` for a ``WhisperConfig``."""
    return {
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_attention_heads,
        "n_audio_layer": config.encoder_layers,
        "n_vocab": config.vocab_size,
        "n_text_ctx": config.max_target_positions,
        "n_text_state": config.d_model,
        "n_text_head": config.decoder_attention_heads,
        "n_text_layer": config.decoder_layers,
    }


def save_for_ctranslate2(cell: Cell, weights: str, folder: Path) -> None:
    """Write the cell's weights as a folder that faster-whisper loads, in float32 (it quantises when loading).

    CTranslate2's converter wants a tokenizer, which random weights lack. Only the ids of the special tokens
    matter here, so the tokens get their ids as names, and faster-whisper's tokenizer is a stand-in.
    """
    from ctranslate2.converters.transformers import WhisperLoader
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    model = Weights(cell, weights).build("original", torch.device("cpu"), torch.float32)
    words = ctranslate2_words(CHECKPOINTS[cell.checkpoint].vocab_size)
    loader = WhisperLoader()
    with torch.no_grad():
        spec = loader.get_model_spec(model)
        spec.register_vocabulary(words)
        loader.set_config(spec.config, model, None)
        spec.validate()
        spec.optimize()
        spec.save(str(folder))
    Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0])).save(
        str(folder / "tokenizer.json")
    )
    features = {"feature_size": CHECKPOINTS[cell.checkpoint].mel_bins}
    (folder / "preprocessor_config.json").write_text(json.dumps(features), encoding="utf-8")


def ctranslate2_words(size: int) -> list[str]:
    """A name for each token id of a vocabulary; CTranslate2 looks the special ones up by theirs."""
    vocabulary = vocabulary_of(size)
    words = [f"<{index}>" for index in range(size)]
    words[vocabulary.end_of_text] = "<|endoftext|>"
    words[vocabulary.prompt[0]] = "<|startoftranscript|>"
    words[vocabulary.prompt[-1] - 1] = "<|nospeech|>"
    words[vocabulary.prompt[-1]] = "<|notimestamps|>"
    return words
