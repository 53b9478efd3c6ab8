"""Calls that follow one another, or run at once, do not disturb each other; nothing piles up."""

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from .compare import OperationCounter, assert_close, assert_half_close, assert_same, tensors
from .tiny import Pair, decoder_tokens, make_pair, mel_features

TOKENS = 10
RECORDED = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}

CALLS: dict[str, Callable[[Any], Any]] = {
    "greedy": lambda model: model.generate(mel_features(2), max_new_tokens=TOKENS),
    "one row": lambda model: model.generate(mel_features(1, seed=1), max_new_tokens=TOKENS),
    "longer": lambda model: model.generate(mel_features(3, seed=2), max_new_tokens=24),
    "beams": lambda model: model.generate(mel_features(2), max_new_tokens=TOKENS, num_beams=2),
    "scores": lambda model: model.generate(mel_features(2), max_new_tokens=TOKENS, **RECORDED),
    "timestamps": lambda model: model.generate(
        mel_features(2), max_new_tokens=TOKENS, return_timestamps=True, return_segments=True
    ),
    "words": lambda model: model.generate(mel_features(2), max_new_tokens=TOKENS, return_token_timestamps=True),
    "forward": lambda model: model(
        mel_features(2), decoder_input_ids=decoder_tokens(2, 5), use_cache=False
    ).logits.detach(),
}


def test_calls_in_any_order(pair: Pair) -> None:
    """Each call gives what it gives on a fresh model, whatever came before."""
    expected = {name: call(copy.deepcopy(pair.original)) for name, call in CALLS.items()}
    orders = [list(CALLS), list(CALLS)[::-1], list(CALLS)[::2] + list(CALLS)[1::2]]
    for order in orders:
        for name in order:
            assert_same(CALLS[name](pair.flash), expected[name], path=name)


def test_results_are_not_overwritten(pair: Pair) -> None:
    """Buffers that are reused are not those that were returned."""
    outputs = [call(pair.flash) for call in CALLS.values()]
    kept = copy.deepcopy(outputs)
    for seed in (5, 6):
        pair.flash.generate(mel_features(3, seed=seed), max_new_tokens=30)
        pair.flash.generate(mel_features(2, seed=seed), max_new_tokens=TOKENS, **RECORDED)
    assert_same(outputs, kept, 0.0)


def test_inputs_are_not_overwritten(pair: Pair) -> None:
    features = mel_features(2)
    prompt = torch.tensor([209, 5, 6])
    with torch.no_grad():
        encoded = pair.flash.get_encoder()(features)
    state = encoded.last_hidden_state.clone()
    pair.flash.generate(features, prompt_ids=prompt, max_new_tokens=TOKENS)
    pair.flash.generate(encoder_outputs=encoded, max_new_tokens=TOKENS)
    pair.flash.generate(mel_features(2, seed=4), max_new_tokens=TOKENS)
    assert torch.equal(features, mel_features(2))
    assert prompt.tolist() == [209, 5, 6]
    assert torch.equal(encoded.last_hidden_state, state)


def live_bytes() -> int:
    """Of all tensors that Python can reach; a storage that several share counts once."""
    gc.collect()
    storages = {}
    for value in gc.get_objects():
        # Neither those of other libraries nor fake ones, which torch keeps for a while and which hold no memory.
        if type(value) in {torch.Tensor, torch.nn.Parameter}:
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("name", ["greedy", "longer", "scores", "words", "beams"])
def test_repeated_calls_keep_memory(name: str, pair: Pair) -> None:
    for _ in range(2):
        CALLS[name](pair.flash)
    before = live_bytes()
    for _ in range(3):
        CALLS[name](pair.flash)
    assert live_bytes() == before


def test_calls_of_many_shapes_keep_memory(pair: Pair) -> None:
    """One buffer for every shape ever seen would be a leak: what stays is bounded by the largest call."""

    def calls(seed: int) -> None:
        for batch in (1, 4, 6):
            for length in (3, 20):
                features = mel_features(batch, seed=seed)
                pair.flash.generate(features, max_new_tokens=length, min_new_tokens=length)

    calls(0)
    pair.flash.generate(mel_features(6), max_new_tokens=33, min_new_tokens=33)
    largest_alone = live_bytes()
    calls(1)
    pair.flash.generate(mel_features(6), max_new_tokens=33, min_new_tokens=33)
    assert live_bytes() <= largest_alone
    fresh = make_pair()
    before = live_bytes()
    fresh.flash.generate(mel_features(6), max_new_tokens=33, min_new_tokens=33)
    one_call = live_bytes() - before
    for seed in range(2):
        for batch in (6, 4, 1):
            fresh.flash.generate(mel_features(batch, seed=seed), max_new_tokens=20)
    assert live_bytes() - before <= 2 * one_call + 4096


def test_model_is_freed(pair: Pair) -> None:
    """No registry of ours keeps a model alive after its user dropped it."""
    flash = copy.deepcopy(pair.flash)
    for call in CALLS.values():
        call(flash)
    reference = weakref.ref(flash)
    del flash
    gc.collect()
    assert reference() is None


def test_operations_do_not_grow(pair: Pair) -> None:
    """The third call does what the second did: nothing is rebuilt, nothing checked more and more."""
    counts = []
    for _ in range(3):
        with OperationCounter() as counter:
            CALLS["greedy"](pair.flash)
        counts.append(counter.count)
    assert counts[1] == counts[2]


@pytest.mark.parametrize(
    "names",
    [["greedy"] * 2, ["greedy", "one row", "longer", "scores"], ["greedy", "beams", "timestamps", "one row"]],
    ids=["twins", "shapes", "modes"],
)
def test_threads(names: list[str], pair: Pair) -> None:
    """Several threads generate on one model at once; the first call of all is among them."""
    expected = {name: CALLS[name](pair.original) for name in set(names)}
    barrier = threading.Barrier(len(names))

    def work(name: str) -> list[Any]:
        barrier.wait()
        return [CALLS[name](pair.flash) for _ in range(4)]

    with ThreadPoolExecutor(len(names)) as pool:
        results = list(pool.map(work, names))
    for name, outputs in zip(names, results, strict=True):
        for output in outputs:
            assert_same(output, expected[name], path=name)


def test_threads_restore_the_implementation(pair: Pair) -> None:
    """A call that begins while another has switched to eager attention must not switch back to that at its end."""
    before = pair.flash.config._attn_implementation
    begun, ended = threading.Event(), threading.Event()

    def plain_step(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        begun.set()
        assert ended.wait(30)
        return scores

    def words_step(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not futures:
            futures.append(pool.submit(pair.flash.generate, mel_features(1), logits_processor=[plain_step]))
            assert begun.wait(30)
        return scores

    futures: list[Any] = []
    with ThreadPoolExecutor(1) as pool:
        pair.flash.generate(
            mel_features(1), max_new_tokens=3, logits_processor=[words_step], return_token_timestamps=True
        )
        ended.set()
        futures[0].result(60)
    assert pair.flash.config._attn_implementation == before


def test_asked_for_implementation_stays(pair: Pair) -> None:
    for model in pair:
        model.set_attn_implementation("eager")
    for name in ("greedy", "words", "scores"):
        assert_same(CALLS[name](pair.flash), CALLS[name](pair.original), path=name)
        assert pair.flash.config._attn_implementation == "eager"


def test_another_model_inside_a_processor() -> None:
    """Its encoder states are not taken for those of the model that is generating."""
    first, second = make_pair(multilingual=True), make_pair(multilingual=True, seed=8)
    outputs = []
    for model, other in zip(first, second, strict=True):

        def processor(input_ids: torch.Tensor, scores: torch.Tensor, other: Any = other) -> torch.Tensor:
            other.detect_language(mel_features(2))
            return scores

        torch.manual_seed(1)
        outputs.append(
            model.generate(
                mel_features(2),
                max_new_tokens=8,
                logits_processor=[processor],
                temperature=(0.0, 0.3, 0.6),
                logprob_threshold=1e9,  # never reached: every temperature is tried
            )
        )
    assert_same(outputs[1], outputs[0])


def test_generate_inside_a_processor(pair: Pair) -> None:
    """A call within a call, on the same model."""

    def inner(model: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def processor(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            tokens = model.generate(mel_features(1, seed=input_ids.shape[1]), max_new_tokens=3)
            scores = scores.clone()
            scores[:, tokens[0, -1]] += 5
            return scores

        return processor

    outputs = [model.generate(mel_features(2), max_new_tokens=6, logits_processor=[inner(model)]) for model in pair]
    assert_same(outputs[1], outputs[0])


def test_inference_mode(pair: Pair) -> None:
    """Nothing that generate derives under inference mode may be in the way of training later."""
    with torch.inference_mode():
        outputs = [CALLS["scores"](model) for model in pair]
        plain = CALLS["greedy"](pair.flash)
    assert_same(outputs[1], outputs[0])
    assert_same(plain, CALLS["greedy"](pair.original))
    assert_same(CALLS["scores"](pair.flash), outputs[0])
    other = make_pair(seed=5)
    losses = []
    for model in pair:
        model.train()
        loss = model(mel_features(2), labels=decoder_tokens(2, 5)).loss
        loss.backward()
        losses.append(loss.detach())
        model.load_state_dict(other.original.state_dict())
        with torch.no_grad():
            model.model.decoder.layers[0].self_attn.q_proj.weight.mul_(1.5)
        model.eval()
    assert_close(losses[1], losses[0])
    with torch.inference_mode():
        assert_same(CALLS["scores"](pair.flash), CALLS["scores"](pair.original))


def test_model_built_under_inference_mode() -> None:
    with torch.inference_mode():
        pair = make_pair()
        assert_same(CALLS["scores"](pair.flash), CALLS["scores"](pair.original))
        assert_same(CALLS["greedy"](pair.flash), CALLS["greedy"](pair.original))


def test_outputs_need_no_gradient(pair: Pair) -> None:
    output = CALLS["scores"](pair.flash)
    assert not any(value.requires_grad for value in tensors(dict(output)))


def test_in_training_mode(pair: Pair) -> None:
    """Without dropout as in evaluation; the mode is left as it was."""
    pair.train()
    assert_same(CALLS["scores"](pair.flash), CALLS["scores"](pair.original))
    assert_same(CALLS["greedy"](pair.flash), CALLS["greedy"](pair.original))
    assert pair.flash.training
    assert all(module.training for module in pair.flash.modules())


@pytest.mark.parametrize(
    "kind", ["dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"]
)
def test_dropout_in_training_mode(kind: str) -> None:
    """The original drops out in generate too when it is in training mode; a silent eval would differ."""
    pair = make_pair(**{kind: 0.5}).train()
    torch.manual_seed(1)
    draws = [torch.stack(CALLS["scores"](pair.flash).scores[:1]) for _ in range(6)]
    assert any(not torch.equal(draw, draws[0]) for draw in draws[1:])
    tokens = [CALLS["one row"](pair.flash) for _ in range(6)]
    assert any(draw.shape != tokens[0].shape or not torch.equal(draw, tokens[0]) for draw in tokens[1:])
    pair.eval()
    assert_same(CALLS["scores"](pair.flash), CALLS["scores"](pair.original))


def test_autocast(pair: Pair) -> None:
    reference = CALLS["scores"](pair.original).logits[0]
    with torch.autocast("cpu", torch.bfloat16):
        original, flash = (CALLS["scores"](model).logits[0] for model in pair)
        plain = [CALLS["greedy"](model) for model in pair]
    assert_half_close(flash.bfloat16(), original.bfloat16(), reference)
    assert plain[0][0, 0] == plain[1][0, 0]
    assert_same(CALLS["greedy"](pair.flash), CALLS["greedy"](pair.original))


def test_frozen(pair: Pair) -> None:
    """Parameters that need no gradient decode like any others."""
    for model in pair:
        model.model.freeze_encoder()
        model.requires_grad_(False)
    assert_same(CALLS["scores"](pair.flash), CALLS["scores"](pair.original))


def test_mixed_modes_per_module() -> None:
    """Dropout that is on in one layer only, as when the rest is frozen in evaluation mode."""
    pair = make_pair(dropout=0.5)
    pair.flash.model.decoder.layers[1].train()
    torch.manual_seed(1)
    draws = [torch.stack(CALLS["scores"](pair.flash).scores[:1]) for _ in range(4)]
    assert any(not torch.equal(draw, draws[0]) for draw in draws[1:])


def test_attention_backend_names_what_served(pair: Pair) -> None:
    """Public, JSON-able, and the same question asked twice gives the same answer."""
    for call in CALLS.values():
        call(pair.flash)
        backend = pair.flash.attention_backend
        assert backend
        assert all(isinstance(key, str) and isinstance(value, str) for key, value in backend.items())
        assert pair.flash.attention_backend == backend
    assert {"encoder", "decode"} <= set(pair.flash.attention_backend)
