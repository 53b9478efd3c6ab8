"""The decoder a step at a time: the original's logits, and `generate`'s tokens, captured or not."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from whisper_flash_attention import WhisperDecodingStepper

from .compare import assert_close
from .cuda_stand_in import cpu_as_cuda
from .tiny import NO_TIMESTAMPS, START, Pair, decoder_tokens, make_pair, mel_features

PROMPT, STEPS = 3, 4


@pytest.fixture(params=["plain", "captured"])
def captured(request: pytest.FixtureRequest) -> Iterator[bool]:
    with cpu_as_cuda() if request.param == "captured" else nullcontext():
        yield request.param == "captured"


def states_of(pair: Pair, batch: int = 2) -> torch.Tensor:
    with torch.no_grad():
        return pair.original.get_encoder()(mel_features(batch)).last_hidden_state


@pytest.mark.parametrize("cross_attention", ["stored", "shared"])
def test_the_logits_are_the_originals(cross_attention: str, captured: bool) -> None:
    pair = make_pair()
    pair.flash.cross_attention = cross_attention
    states, ids = states_of(pair), decoder_tokens(2, PROMPT + STEPS)
    with torch.no_grad():
        expected = pair.original(encoder_outputs=(states,), decoder_input_ids=ids).logits
    stepper = WhisperDecodingStepper(pair.flash, states, PROMPT + STEPS)
    assert_close(stepper.read_prompt(ids[:, :PROMPT]), expected[:, PROMPT - 1])
    for length in range(PROMPT, PROMPT + STEPS):
        assert stepper.length == length
        assert_close(stepper.step(ids[:, length]), expected[:, length])
    assert pair.flash.attention_backend["step"].startswith("graph" if captured else ("eager", "compiled"))


def test_greedy_steps_choose_what_generate_does(captured: bool) -> None:
    pair = make_pair()
    prompt = torch.tensor([[START, NO_TIMESTAMPS]]).expand(2, -1).contiguous()
    stepper = WhisperDecodingStepper(pair.flash, states_of(pair), 2 + STEPS)
    chosen = [stepper.read_prompt(prompt).argmax(dim=-1)]
    for _ in range(STEPS):
        chosen.append(stepper.greedy_step(chosen[-1]).clone())
    with torch.no_grad():
        ids = torch.cat([prompt, torch.stack(chosen, dim=1)], dim=1)
        logits = pair.original(encoder_outputs=(states_of(pair),), decoder_input_ids=ids).logits
    assert torch.equal(ids[:, 2:], logits[:, 1:-1].argmax(dim=-1))


def test_a_step_can_be_taken_again(captured: bool) -> None:
    """Set back, it forgets what it read since: the same step is the same step."""
    pair = make_pair()
    ids = decoder_tokens(2, PROMPT + 1)
    stepper = WhisperDecodingStepper(pair.flash, states_of(pair), PROMPT + 1)
    stepper.read_prompt(ids[:, :PROMPT])
    first = stepper.step(ids[:, PROMPT]).clone()
    for _ in range(2):
        stepper.length = PROMPT
        assert torch.equal(stepper.greedy_step(ids[:, PROMPT]), first.argmax(dim=-1))
        stepper.length = PROMPT
        assert_close(stepper.step(ids[:, PROMPT]), first)


def test_uncaptured_steps_are_not_replayed() -> None:
    pair = make_pair()
    ids = decoder_tokens(1, PROMPT + 1)
    with cpu_as_cuda() as device:
        stepper = WhisperDecodingStepper(pair.flash, states_of(pair, 1), PROMPT + 1)
        stepper.read_prompt(ids[:, :PROMPT])
        with pair.flash.uncaptured(), pair.flash.uncaptured():
            alone = stepper.greedy_step(ids[:, PROMPT]).clone()
        assert device.graphs == []
        stepper.length = PROMPT
        assert torch.equal(stepper.greedy_step(ids[:, PROMPT]), alone)
        assert len(device.graphs) == 1


@pytest.mark.parametrize("beyond", [True, False])
def test_more_tokens_than_positions_are_refused(beyond: bool) -> None:
    pair = make_pair()
    max_length = pair.flash.config.max_target_positions + 1 if beyond else 0
    with pytest.raises(ValueError, match=f"max_length is {max_length}; the model has positions for 1 to"):
        WhisperDecodingStepper(pair.flash, states_of(pair), max_length)
