"""From logits to tokens, step by step, and when to stop."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from .logits import ScoreProcessor
from .weights import DecoderWeights


@dataclass
class Stopping:
    """Stopping criteria, sorted.

    Attributes:
        max_length: Tokens, prompt included, at which decoding ends.
        eos: `(n,)`, ids that end a sequence, or None.
        others: Every other criterion, called after each token.
    """

    max_length: int
    eos: Tensor | None
    others: StoppingCriteriaList

    @classmethod
    def from_criteria(cls, criteria: StoppingCriteriaList, limit: int, device: torch.device) -> "Stopping":
        """Sort a list; without a maximum length, `limit` ends decoding as the position embedding does."""
        max_length, eos, others = limit, None, StoppingCriteriaList()
        for criterion in criteria:
            if type(criterion) is MaxLengthCriteria:
                max_length = min(max_length, criterion.max_length)
            elif type(criterion) is EosTokenCriteria and eos is None:
                eos = criterion.eos_token_id.to(device).flatten()
            else:
                others.append(criterion)
        return cls(max_length, eos, others)

    def ended(self, ids: Tensor, scores: tuple[Tensor, ...] | None) -> Tensor:
        """Which of the sequences `ids`, `(n, length)`, end with their last token, `(n,)`.

        Args:
            ids: The sequences.
            scores: Those of every step, for the criteria that ask for them.
        """
        ends = torch.full(ids.shape[:1], ids.shape[1] >= self.max_length, device=ids.device)
        if self.eos is not None:
            ends = ends | torch.isin(ids[:, -1], self.eos)
        return ends | self.others(ids, scores) if len(self.others) else ends


@dataclass
class TokenChooser:
    """Turns logits into tokens, step by step, and knows which sequences have ended.

    Attributes:
        processor: The logits processors, prepared.
        stopping: When to stop.
        pad: `()`, the id that follows the end of a sequence.
        samples: Whether to sample; else the likeliest token is taken.
        keeps_scores, keeps_logits: Whether each step's are kept, as float32.
        scores, logits: Those, `(batch, vocabulary)` each.
        unfinished: `(batch,)`, True while a sequence goes on; None until one may have ended.
    """

    processor: ScoreProcessor
    stopping: Stopping
    pad: Tensor | None
    samples: bool
    keeps_scores: bool
    keeps_logits: bool
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    unfinished: Tensor | None = None

    def __post_init__(self) -> None:
        self._eos_ids = set() if self.stopping.eos is None else set(self.stopping.eos.tolist())

    @classmethod
    def from_config(
        cls, config: GenerationConfig, processors: LogitsProcessorList, stopping: Stopping, weights: DecoderWeights
    ) -> "TokenChooser":
        """Prepare a call to a model of these `weights`."""
        as_dict = bool(config.return_dict_in_generate)
        return cls(
            processor=ScoreProcessor.for_model(processors, weights),
            stopping=stopping,
            pad=config._pad_token_tensor,
            samples=bool(config.do_sample),
            keeps_scores=as_dict and bool(config.output_scores),
            keeps_logits=as_dict and bool(config.output_logits),
        )

    def is_capturable(self, prompt: int) -> bool:
        """Whether every step behind the first token is the same few operations, so that a graph can hold it.

        Args:
            prompt: Tokens of the prompt.
        """
        if self.samples or self.keeps_scores or self.keeps_logits or not self.processor.is_capturable:
            return False
        timestamps = self.processor.timestamps
        return timestamps is None or timestamps.begin <= prompt

    def choose(self, ids: Tensor, length: int, logits: Tensor) -> Tensor:
        """Choose the next tokens and write them.

        Args:
            ids: `(batch, capacity)`, the first `length` columns written; gets the next.
            length: Tokens so far, prompt included.
            logits: `(batch, vocabulary)`, in the model's dtype; may be changed in place.

        Returns:
            `(batch,)` tokens.
        """
        scores = logits.float()
        if self.keeps_logits:
            self.logits.append(scores.clone())
        scores = self.processor(ids, length, scores)
        if self.keeps_scores:
            self.scores.append(scores)
        if self.samples:
            tokens = torch.multinomial(F.softmax(scores, dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = scores.argmax(dim=-1)
        if self.unfinished is not None and self.stopping.eos is not None and self.pad is not None:
            tokens = torch.where(self.unfinished, tokens, self.pad)
        ids[:, length] = tokens
        self._update_unfinished(ids[:, : length + 1], tokens)
        return tokens

    def _update_unfinished(self, ids: Tensor, tokens: Tensor) -> None:
        """Find out which sequences go on after `tokens`, without a look where none can have ended."""
        goes_on = self.unfinished
        eos = self.stopping.eos
        if eos is not None and not self.processor.forbids(self._eos_ids, ids.shape[1] - 1):
            others = tokens != eos if len(eos) == 1 else torch.isin(tokens, eos, invert=True)
            goes_on = others if goes_on is None else goes_on & others
        if len(self.stopping.others):
            kept = tuple(self.scores) if self.keeps_scores else None
            others = ~self.stopping.others(ids, kept)
            goes_on = others if goes_on is None else goes_on & others
        self.unfinished = goes_on

    def is_finished(self) -> bool:
        """Whether every sequence has ended."""
        return self.unfinished is not None and not bool(self.unfinished.any())
