"""Token ids of the published vocabularies, so that ``generate`` does what it does on published checkpoints.

Source: the checkpoints' ``generation_config.json``. The suppressed text tokens are the non-speech symbols
that OpenAI's tokenizer lists (``whisper/tokenizer.py``, ``non_speech_tokens``). Imports no torch.
"""

from typing import Any, NamedTuple

# fmt: off
_ENGLISH_SYMBOLS = (
    1, 2, 7, 8, 9, 10, 14, 25, 26, 27, 28, 29, 31, 58, 59, 60, 61, 62, 63, 90, 91, 92, 93, 357, 366, 438, 532,
    685, 705, 796, 930, 1058, 1220, 1267, 1279, 1303, 1343, 1377, 1391, 1635, 1782, 1875, 2162, 2361, 2488,
    3467, 4008, 4211, 4600, 4808, 5299, 5855, 6329, 7203, 9609, 9959, 10563, 10786, 11420, 11709, 11907,
    13163, 13697, 13700, 14808, 15306, 16410, 16791, 17992, 19203, 19510, 20724, 22305, 22935, 27007, 30109,
    30420, 33409, 34949, 40283, 40493, 40549, 47282, 49146,
)
_MULTILINGUAL_SYMBOLS = (
    1, 2, 7, 8, 9, 10, 14, 25, 26, 27, 28, 29, 31, 58, 59, 60, 61, 62, 63, 90, 91, 92, 93, 359, 503, 522, 542,
    873, 893, 902, 918, 922, 931, 1350, 1853, 1982, 2460, 2627, 3246, 3253, 3268, 3536, 3846, 3961, 4183,
    4667, 6585, 6647, 7273, 9061, 9383, 10428, 10929, 11938, 12033, 12331, 12562, 13793, 14157, 14635, 15265,
    15618, 16553, 16604, 18362, 18956, 20075, 21675, 22520, 26130, 26161, 26435, 28279, 29464, 31650, 32302,
    32470, 36865, 42863, 47425, 49870, 50254,
)
# fmt: on


class Vocabulary(NamedTuple):
    """One published vocabulary of ``size`` tokens; ``prompt`` is what English text without timestamps starts from."""

    size: int
    end_of_text: int
    prompt: tuple[int, ...]
    suppress: tuple[int, ...]
    language_ids: dict[str, int]
    task_ids: dict[str, int]

    @property
    def multilingual(self) -> bool:
        """Whether ``generate`` must be told the language and the task."""
        return bool(self.language_ids)

    def generation_settings(self) -> dict[str, Any]:
        """The published generation config, as keyword arguments of ``GenerationConfig``."""
        settings: dict[str, Any] = {
            "bos_token_id": self.end_of_text,
            "eos_token_id": self.end_of_text,
            "pad_token_id": self.end_of_text,
            "decoder_start_token_id": self.prompt[0],
            "no_timestamps_token_id": self.prompt[-1],
            "begin_suppress_tokens": [220, self.end_of_text],
            "suppress_tokens": list(self.suppress),
            "is_multilingual": self.multilingual,
            "max_initial_timestamp_index": 50,
            "return_timestamps": False,
        }
        if self.multilingual:
            settings |= {"lang_to_id": self.language_ids, "task_to_id": self.task_ids}
        return settings

    def generate_arguments(self, new_tokens: int, *, plain_text: bool = False) -> dict[str, Any]:
        """Arguments of ``generate`` for greedy decoding of exactly ``new_tokens`` tokens.

        ``plain_text`` leaves nothing but text to choose. Where random weights choose a timestamp, ``generate`` sees a
        segment end and decodes another window: twice the work, and in half precision a near tie may decide.
        """
        arguments: dict[str, Any] = {
            "min_new_tokens": new_tokens,
            "max_new_tokens": new_tokens,
            "do_sample": False,
            "num_beams": 1,
        }
        if self.multilingual:
            arguments |= {"language": "en", "task": "transcribe"}
        if plain_text:
            # Special tokens and timestamps come behind the text.
            arguments["suppress_tokens"] = sorted({*self.suppress, *range(self.end_of_text, self.size)})
        return arguments


def vocabulary_of(size: int) -> Vocabulary:
    """The vocabulary of 51864 (English-only), 51865 (multilingual) or 51866 tokens (one language more)."""
    if size == 51864:
        special = tuple(range(50357, 50362))
        return Vocabulary(size, 50256, (50257, 50362), (*_ENGLISH_SYMBOLS, 50257, *special), {}, {})
    if size not in (51865, 51866):
        raise ValueError(f"no published Whisper vocabulary has {size} tokens")
    shift = size - 51865
    translate, transcribe, no_timestamps = 50358 + shift, 50359 + shift, 50363 + shift
    special = tuple(range(translate, no_timestamps))
    return Vocabulary(
        size=size,
        end_of_text=50257,
        prompt=(50258, 50259, transcribe, no_timestamps),
        suppress=(*_MULTILINGUAL_SYMBOLS, 50258, *special),
        language_ids={"<|en|>": 50259},
        task_ids={"transcribe": transcribe, "translate": translate},
    )
