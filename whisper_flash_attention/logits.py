"""Logits processors, prepared once.

Whisper's usual processors only forbid tokens: always, at the first step, or until a minimum length. What they forbid
is known before decoding starts, so runs of them become one mask, in place of a search through the vocabulary per
token. The rules about timestamps are in `timestamps.py`. Every other processor runs as it is, in its place.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from .timestamps import TimestampRules
from .weights import DecoderWeights


class Rule(NamedTuple):
    """Tokens that may not be chosen while the sequence is of certain lengths.

    Attributes:
        tokens: `(n,)`, token ids.
        first: The shortest sequence, prompt included, that the rule holds for.
        end: The first length that it does not hold for any more; None for never.
    """

    tokens: Tensor
    first: int
    end: int | None


def as_rule(processor: LogitsProcessor) -> Rule | None:
    """Express a processor as a rule; None where it does more than forbid known tokens at known lengths."""
    if type(processor) is SuppressTokensLogitsProcessor:
        return Rule(processor.suppress_tokens, 0, None)
    if type(processor) is SuppressTokensAtBeginLogitsProcessor:
        return Rule(processor.begin_suppress_tokens, processor.begin_index, processor.begin_index + 1)
    if type(processor) is MinLengthLogitsProcessor:
        return Rule(processor.eos_token_id, 0, processor.min_length)
    if type(processor) is MinNewTokensLengthLogitsProcessor:
        return Rule(processor.eos_token_id, 0, processor.prompt_length_to_skip + processor.min_new_tokens)
    return None


class Suppression:
    """A run of rules as one mask of what is forbidden.

    Args:
        rules: The rules.
        vocabulary: Number of tokens.
        device: Of the scores.
    """

    def __init__(self, rules: list[Rule], vocabulary: int, device: torch.device) -> None:
        self._rules = rules
        self._ids = [set(rule.tokens.flatten().tolist()) for rule in rules]
        self._vocabulary, self._device = vocabulary, device
        self._masks: dict[tuple[bool, ...], Tensor] = {}

    def active(self, length: int) -> tuple[bool, ...]:
        """Which rules hold for a sequence of `length` tokens."""
        return tuple(rule.first <= length and (rule.end is None or length < rule.end) for rule in self._rules)

    def forbids(self, tokens: set[int], length: int) -> bool:
        """Whether none of `tokens` can follow a sequence of `length` tokens."""
        forbidden: set[int] = set()
        for ids, holds in zip(self._ids, self.active(length), strict=True):
            if holds:
                forbidden |= ids
        return tokens <= forbidden

    def mask(self, length: int) -> Tensor:
        """What may not be chosen, `(vocabulary,)`, when a sequence of `length` tokens is continued."""
        active = self.active(length)
        if active not in self._masks:
            mask = torch.zeros(self._vocabulary, dtype=torch.bool, device=self._device)
            for rule, holds in zip(self._rules, active, strict=True):
                if holds:
                    tokens = rule.tokens.to(mask.device, torch.long).flatten()
                    mask[tokens[tokens < mask.shape[0]]] = True
            self._masks[active] = mask
        return self._masks[active]


class ScoreProcessor:
    """A list of logits processors, prepared.

    Args:
        processors: What Transformers prepared for the call.
        vocabulary: Number of tokens.
        device: Of the scores.
    """

    def __init__(self, processors: LogitsProcessorList, vocabulary: int, device: torch.device) -> None:
        self._stages: list[Suppression | TimestampRules | LogitsProcessor] = []
        rules: list[Rule] = []
        for processor in processors:
            rule = as_rule(processor)
            if rule is not None:
                rules.append(rule)
                continue
            if rules:
                self._stages.append(Suppression(rules, vocabulary, device))
                rules = []
            self._stages.append(TimestampRules.from_processor(processor, vocabulary, device) or processor)
        if rules:
            self._stages.append(Suppression(rules, vocabulary, device))

    @classmethod
    def for_model(cls, processors: LogitsProcessorList, weights: DecoderWeights) -> Self:
        """Prepare a list for the scores of a model."""
        return cls(processors, weights.vocabulary.weight.shape[0], weights.vocabulary.weight.device)

    @property
    def is_capturable(self) -> bool:
        """Whether the list is at most a suppression and then the rules about timestamps: a captured step holds both."""
        kinds = [type(stage) for stage in self._stages]
        return kinds in ([], [Suppression], [TimestampRules], [Suppression, TimestampRules])

    @property
    def suppression(self) -> Suppression | None:
        """The suppression of a capturable list; None where nothing is forbidden."""
        return next((stage for stage in self._stages if isinstance(stage, Suppression)), None)

    @property
    def timestamps(self) -> TimestampRules | None:
        """The rules about timestamps of a capturable list, if there are any."""
        return next((stage for stage in self._stages if isinstance(stage, TimestampRules)), None)

    def forbids(self, tokens: set[int], length: int) -> bool:
        """Whether none of `tokens` can follow a sequence of `length` tokens; False where a processor might lift it."""
        for stage in reversed(self._stages):
            if not isinstance(stage, TimestampRules):
                return isinstance(stage, Suppression) and stage.forbids(tokens, length)
        return False

    def __call__(self, ids: Tensor, length: int, scores: Tensor) -> Tensor:
        """Process scores.

        Args:
            ids: `(batch, capacity)`, the first `length` columns written.
            length: Tokens so far, prompt included.
            scores: `(batch, vocabulary)`, float32; may be changed in place.

        Returns:
            The processed scores.
        """
        is_own = True
        for stage in self._stages:
            if not isinstance(stage, Suppression | TimestampRules):
                scores, is_own = stage(ids[:, :length], scores), False
                continue
            if not is_own:  # a processor may have kept what it gave
                scores, is_own = scores.clone(), True
            if isinstance(stage, Suppression):
                # Not by adding -inf: what is forbidden stays so where a score is NaN or infinite.
                scores = scores.masked_fill_(stage.mask(length), -torch.inf)
            else:
                scores = stage(ids, length, scores)
        return scores
