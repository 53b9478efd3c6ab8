"""Word error rate: what was transcribed against what was said."""

from collections.abc import Sequence

import jiwer
from torch import Tensor
from transformers import WhisperTokenizer
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer


def word_error_rate(checkpoint: str, tokens: Tensor, said: Sequence[str]) -> float:
    """Errors (substitutions, deletions, insertions) per word that was said, over all clips together.

    Both sides go through Whisper's English normaliser (Radford et al., 2022, appendix C) first: case, punctuation,
    contractions, numbers and spellings do not count.

    Args:
        checkpoint: Hub id of the tokenizer; its ``normalizer.json`` has the spellings (without one, British and
            American spellings are two words).
        tokens: (clips, tokens).
        said: One text per clip.
    """
    tokenizer = WhisperTokenizer.from_pretrained(checkpoint)
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    normalize = EnglishTextNormalizer(tokenizer.english_spelling_normalizer or {})
    references, hypotheses = ([normalize(text) for text in side] for side in (said, texts))
    return float(jiwer.wer(references, hypotheses))
