"""Whole generations beyond the tables' settings: long-form audio, and a data set's clips with their words."""

from typing import Any

import torch
from torch import Tensor

from perf_tests.subjects.parity import SEED

from .component import Component

FORCED_TOKENS = 25
FRAMES_PER_WINDOW = 3000


class Generation(Component):
    """A component whose round is a ``generate``; parity also compares logits of the first window."""

    def compute(self) -> Any:
        return self.model.generate(self.features, **self.arguments)

    def tokens(self) -> Tensor:
        given = self.compute()
        tokens: Tensor = given["sequences"] if isinstance(given, dict) else given
        return tokens

    @torch.no_grad()
    def outputs(self) -> tuple[Tensor, ...]:
        """Logits of a teacher-forced pass over random tokens and the first audio's first window."""
        generator = torch.Generator().manual_seed(SEED)
        ids = torch.randint(50000, (1, FORCED_TOKENS), generator=generator).to(self.place.device)
        window = self.features[:1, :, :FRAMES_PER_WINDOW]
        logits: Tensor = self.model(input_features=window, decoder_input_ids=ids).logits
        return (logits,)


class LongForm(Generation):
    """Audio of many windows, one after the other, as the original's sequential long-form algorithm goes.

    Random weights would end windows anywhere. Of the timestamps only the first is left to choose, so every window
    has that and the forced text tokens, and the next one starts 30 s later: the same work whatever the weights.
    """

    def prepare(self) -> None:
        """Say what may be generated."""
        config = self.model.generation_config
        first = config.no_timestamps_token_id + 1
        later = range(first + 1, self.dims.vocab_size)
        self.arguments = {
            **self.arguments,
            "attention_mask": torch.ones(
                self.features.shape[0], self.features.shape[2], dtype=torch.long, device=self.place.device
            ),
            "return_timestamps": True,
            "suppress_tokens": [*config.suppress_tokens, *later],
            "temperature": 0.0,
            "condition_on_prev_tokens": False,
        }


class Transcription(Generation):
    """The clips of a data set; what was transcribed is compared with what was said."""

    def prepare(self) -> None:
        """Let sentences end where they end."""
        forced = ("min_new_tokens", "max_new_tokens")
        self.arguments = {key: value for key, value in self.arguments.items() if key not in forced}

    def findings(self) -> dict[str, Any]:
        """The word error rate, by ``jiwer`` with Whisper's English normaliser."""
        from .words import word_error_rate

        assert self.speech.texts is not None
        rate = word_error_rate(self.dims.hub_id, self.tokens(), self.speech.texts[: len(self.features)])
        return {"word_error_rate": rate}
