"""Beam search over a decoder whose beams share the audio they attend to.

The arithmetic, and so every tie, is that of Transformers' beam search: as many candidates per audio as leave enough
running beams should all the others end; the scores of ended ones divided by a power of their length; and the same
bounds by which it stops early.
"""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import GenerateBeamEncoderDecoderOutput

from .choosing import Stopping
from .decoder import Decoder
from .logits import ScoreProcessor

IMPOSSIBLE = -1.0e9
"""Added to the score of what may not be chosen, as in Transformers: finite, so that differences stay numbers."""


class Hypotheses(NamedTuple):
    """Some sequences for each audio.

    Attributes:
        scores: `(audios, n)`, float32.
        paths: `(audios, n, 2, max_length)`: the tokens, and behind the end padding; and the row of the batch that each
            of them was chosen in, -1 where none was.
    """

    scores: Tensor
    paths: Tensor

    @property
    def tokens(self) -> Tensor:
        """`(audios, n, max_length)`."""
        return self.paths[:, :, 0]

    def select(self, index: Tensor) -> Self:
        """Take the sequences `index`, `(audios, m)`, of each audio."""
        rows = index[:, :, None, None].expand(-1, -1, *self.paths.shape[2:])
        return self._replace(scores=self.scores.gather(1, index), paths=self.paths.gather(1, rows))

    def joined(self, other: Self) -> Self:
        """These, then the others."""
        return self._replace(
            scores=torch.cat((self.scores, other.scores), dim=1), paths=torch.cat((self.paths, other.paths), dim=1)
        )


class BeamSearch:
    """One search.

    Args:
        config: The prepared configuration.
        processor: The logits processors, prepared.
        stopping: When a sequence ends.

    Attributes:
        scores, logits: Of every step, `(batch, vocabulary)` each, where the configuration wants them.
    """

    def __init__(self, config: GenerationConfig, processor: ScoreProcessor, stopping: Stopping) -> None:
        self.config, self.processor, self.stopping = config, processor, stopping
        self.beams: int = config.num_beams
        eos = config._eos_token_tensor
        ends = 0 if eos is None else len(eos)
        self._candidates = max(2, 1 + ends) * self.beams
        as_dict = bool(config.return_dict_in_generate)
        self._keeps_scores = as_dict and bool(config.output_scores)
        self._keeps_logits = as_dict and bool(config.output_logits)
        self.scores: list[Tensor] = []
        self.logits: list[Tensor] = []

    def run(self, decoder: Decoder, input_ids: Tensor) -> Tensor | GenerateBeamEncoderDecoderOutput:
        """Search for the likeliest continuations.

        Args:
            decoder: Whose cache has `num_beams` sequences per audio.
            input_ids: `(batch, prompt)`, the prompt of each audio once per beam.

        Returns:
            `(audios · num_return_sequences, length)` tokens, the best of an audio first, or the output object.
        """
        batch, prompt = input_ids.shape
        audios, device = batch // self.beams, input_ids.device
        running = self._start(input_ids)
        ended = running._replace(scores=torch.full_like(running.scores, IMPOSSIBLE))
        is_ended = torch.zeros(audios, self.beams, dtype=torch.bool, device=device)
        can_improve = torch.ones(audios, 1, dtype=torch.bool, device=device)
        first_row = torch.arange(audios, device=device)[:, None] * self.beams
        is_top = torch.arange(self._candidates, device=device) < self.beams

        length, logits = prompt, decoder.read_prompt(input_ids)
        while True:
            candidates = self._continue(running, length, logits, first_row)
            length += 1
            kept = tuple(self.scores) if self._keeps_scores else None
            ends = self.stopping.ended(candidates.tokens[:, :, :length].flatten(0, 1), kept).view(audios, -1)

            open_scores = candidates.scores + ends.float() * IMPOSSIBLE
            running = candidates._replace(scores=open_scores).select(open_scores.topk(self.beams)[1])

            # Of the candidates behind the best `num_beams`, none may end a sequence: they are there to go on.
            ends_now = ends & is_top
            scores = candidates.scores / ((length - prompt) ** self.config.length_penalty)
            if self.config.early_stopping is True:
                scores = scores + is_ended.all(dim=-1, keepdim=True).float() * IMPOSSIBLE
            scores = scores + (~can_improve).float() * IMPOSSIBLE
            scores = scores + (~ends_now).float() * IMPOSSIBLE
            merged = ended.joined(candidates._replace(scores=scores))
            best = merged.scores.topk(self.beams)[1]
            ended, is_ended = merged.select(best), torch.cat((is_ended, ends_now), dim=1).gather(1, best)

            decoder.cache.reorder(running.paths[:, :, 1, length - 1].flatten(), length - 1)
            can_improve = can_improve & self._may_improve(running, ended, is_ended, length - prompt, prompt)
            goes_on = can_improve.any() & ~ends.all()
            if self.config.early_stopping is True:
                goes_on = goes_on & ~is_ended.all()
            if not bool(goes_on):
                break
            logits = decoder.step(running.tokens[:, :, length - 1].flatten(), length)
        return self._output(decoder, ended, prompt, length)

    def _start(self, input_ids: Tensor) -> Hypotheses:
        """The prompts; of the beams of an audio, which are all the same, only the first is to be continued."""
        batch, prompt = input_ids.shape
        max_length, pad, eos = self.stopping.max_length, self.config._pad_token_tensor, self.config._eos_token_tensor
        if eos is None:
            fill = -1
        else:
            fill = int(eos[0]) if pad is None or int(pad) == 0 else int(pad)
        paths = input_ids.new_full((batch, 2, max_length), -1)
        paths[:, 0] = fill
        paths[:, 0, :prompt] = input_ids
        scores = torch.zeros(batch // self.beams, self.beams, device=input_ids.device)
        scores[:, 1:] = IMPOSSIBLE
        return Hypotheses(scores, paths.view(*scores.shape, 2, max_length))

    def _continue(self, running: Hypotheses, length: int, logits: Tensor, first_row: Tensor) -> Hypotheses:
        """The likeliest continuations of the running beams, by one token behind `length`, best first."""
        logits = logits.float()
        scores = self.processor(running.tokens.flatten(0, 1), length, F.log_softmax(logits, dim=-1))
        if self._keeps_logits:
            self.logits.append(logits)
        if self._keeps_scores:
            self.scores.append(scores.clone())  # a processor may hand over what it changes at its next call
        vocabulary = scores.shape[-1]
        totals = scores.reshape(*running.scores.shape, vocabulary) + running.scores[:, :, None]
        best, index = totals.flatten(1).topk(self._candidates)
        beam = index // vocabulary
        candidates = running.select(beam)._replace(scores=best)
        candidates.paths[..., length] = torch.stack((index % vocabulary, beam + first_row), dim=2)
        return candidates

    def _may_improve(
        self, running: Hypotheses, ended: Hypotheses, is_ended: Tensor, new_tokens: int, prompt: int
    ) -> Tensor:
        """Whether the best running beam might still beat the worst ended one, `(audios, 1)`: a bound or a guess."""
        penalty = self.config.length_penalty
        if self.config.early_stopping == "never" and penalty > 0.0:
            new_tokens = self.config.max_length - prompt
        possible = running.scores[:, :1] / (new_tokens**penalty)
        worst = torch.where(is_ended, ended.scores.amin(dim=1, keepdim=True), IMPOSSIBLE)
        improves: Tensor = (possible > worst).any(dim=-1, keepdim=True)
        return improves

    def _output(
        self, decoder: Decoder, ended: Hypotheses, prompt: int, length: int
    ) -> Tensor | GenerateBeamEncoderDecoderOutput:
        """The best ended sequences of each audio, cut where the longest ends."""
        scores, paths = (values[:, : self.config.num_return_sequences].flatten(0, 1) for values in ended)
        tokens, rows = paths.unbind(1)
        end = prompt + int((rows != -1).sum(dim=1).amax())
        sequences = tokens[:, :end]
        if not self.config.return_dict_in_generate:
            return sequences
        decoder.cache.set_lengths(length - 1)
        return GenerateBeamEncoderDecoderOutput(
            sequences=sequences,
            sequences_scores=scores if self.config.output_scores else None,
            scores=tuple(self.scores) if self._keeps_scores else None,
            logits=tuple(self.logits) if self._keeps_logits else None,
            beam_indices=rows[:, prompt:end].int(),
            past_key_values=decoder.cache,
        )
