"""Whisper's rules about timestamps, for a whole batch at once and without a look at the tokens from the host.

The rules are those of Transformers' `WhisperTimeStampLogitsProcessor` (and of `ApplyTimestampRules` in openai-whisper):
timestamps come in pairs, except before the end; they do not decrease, and none but the closing one of a pair is said
again; the first token is a timestamp, and not too late a one; and where the timestamps together are likelier than any
other token, one of them it is.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor
from transformers import LogitsProcessor, WhisperTimeStampLogitsProcessor


class TimestampState(NamedTuple):
    """What the rules need to know of the tokens of each sequence, its prompt aside.

    Attributes:
        last: `(batch,)`, whether the last token is a timestamp.
        penultimate: `(batch,)`, whether the one before is, or there is none.
        latest: `(batch,)`, the last timestamp; the id before the first one where there is none.
    """

    last: Tensor
    penultimate: Tensor
    latest: Tensor


class TimestampRules:
    """The rules, prepared for a request.

    Args:
        processor: Transformers' processor, whose settings are taken.
        vocabulary: Number of tokens.
        device: Of the scores.

    Attributes:
        begin: The length of a sequence that has nothing but its prompt.
        first: The id of the first timestamp; all ids from there on are timestamps.
        eos: The id of the end; all ids below are text.
    """

    def __init__(self, processor: WhisperTimeStampLogitsProcessor, vocabulary: int, device: torch.device) -> None:
        self.begin: int = processor.begin_index
        self.first: int = processor.timestamp_begin
        self.eos: int = processor.eos_token_id
        self._no_timestamps: int = processor.no_timestamps_token_id
        self._max_initial: int | None = processor.max_initial_timestamp_index
        self._prefers_likely: bool = processor._detect_timestamp_from_logprob
        self._ids = torch.arange(self.first, max(self.first, vocabulary), device=device)

    @classmethod
    def from_processor(cls, processor: LogitsProcessor, vocabulary: int, device: torch.device) -> Self | None:
        """Prepare a processor; None where it is another one, or of unusual settings."""
        if type(processor) is not WhisperTimeStampLogitsProcessor or not isinstance(processor.eos_token_id, int):
            return None
        return cls(processor, vocabulary, device)

    @property
    def key(self) -> tuple[int | bool | None, ...]:
        """What tells these rules from others, the prompt's length aside."""
        return self.first, self.eos, self._no_timestamps, self._prefers_likely, len(self._ids)

    def __call__(self, ids: Tensor, length: int, scores: Tensor) -> Tensor:
        """Apply the rules to sequences `ids`, `(batch, capacity)`, of which `length` columns are written.

        Args:
            ids: The sequences.
            length: Tokens so far, prompt included.
            scores: `(batch, vocabulary)`, float32; changed in place.

        Returns:
            The scores.
        """
        state = self.state_of(ids[:, self.begin : length])
        if length != self.begin:
            return self.apply(scores, state)
        last_allowed = None if self._max_initial is None else self.first + self._max_initial
        return self.apply(scores, state, last_allowed=last_allowed, begins=True)

    def state_of(self, tokens: Tensor) -> TimestampState:
        """The state of sequences whose tokens behind the prompt are `(batch, n)`."""
        is_timestamp = tokens >= self.first
        batch, count = tokens.shape
        last = is_timestamp[:, -1] if count else tokens.new_zeros(batch, dtype=torch.bool)
        penultimate = is_timestamp[:, -2] if count > 1 else tokens.new_ones(batch, dtype=torch.bool)
        if not count:
            return TimestampState(last, penultimate, tokens.new_full((batch,), self.first - 1))
        place = torch.where(is_timestamp, torch.arange(count, device=tokens.device), -1).amax(dim=1)
        latest = tokens.gather(1, place.clamp(min=0)[:, None])[:, 0]
        return TimestampState(last, penultimate, torch.where(place < 0, self.first - 1, latest))

    def following(self, state: TimestampState, tokens: Tensor) -> TimestampState:
        """The state after `tokens`, `(batch,)`, of sequences that have at least one token behind the prompt."""
        last = tokens >= self.first
        return TimestampState(last, state.last, torch.where(last, tokens, state.latest))

    def apply(
        self, scores: Tensor, state: TimestampState, *, last_allowed: int | None = None, begins: bool = False
    ) -> Tensor:
        """Apply the rules, in place.

        Args:
            scores: `(batch, vocabulary)`, float32.
            state: Of the sequences.
            last_allowed: The last timestamp that may be the first token; None for no limit.
            begins: Whether this is the first token.

        Returns:
            The scores.
        """
        opened, complete = state.last & ~state.penultimate, state.last & state.penultimate
        scores[:, self._no_timestamps] = -torch.inf
        scores[:, : self.eos].masked_fill_(opened[:, None], -torch.inf)
        lowest = state.latest + ~opened
        forbidden = complete[:, None] | (self._ids < lowest[:, None])
        scores[:, self.first :].masked_fill_(forbidden, -torch.inf)
        if begins:
            scores[:, : self.first] = -torch.inf
            if last_allowed is not None:
                scores[:, last_allowed + 1 :] = -torch.inf
        if self._prefers_likely:
            # With the original's normalisation, so that what ties there ties here.
            likelihoods = torch.log_softmax(scores, dim=-1)
            timestamps = likelihoods[:, self.first :].logsumexp(dim=-1)
            likeliest = timestamps > likelihoods[:, : self.first].amax(dim=-1)
            scores[:, : self.first].masked_fill_(likeliest[:, None], -torch.inf)
        return scores
