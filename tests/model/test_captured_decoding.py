"""Captured decoding, whole, on a stand-in for CUDA's graphs: sessions, their pool, and weights that change."""

from contextlib import suppress
from typing import Any

import pytest
import torch

from whisper_flash_attention.captured_decoding import CHECK_EVERY, SPAN_STEP, GreedySession, on_decoding_stream

from .compare import assert_same
from .cuda_stand_in import NOT_PERMITTED, cpu_as_cuda
from .tiny import EOS, Pair, make_pair, mel_features

TOKENS = 40
# One call, one window: without the last, a timestamp among the random tokens starts another window.
FORCED = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "force_unique_generate_call": True}
CPU = torch.device("cpu")


@pytest.mark.parametrize("cross_attention", ["stored", "shared"])
@pytest.mark.parametrize("batch", [1, 3])
def test_one_graph_serves_call_after_call(batch: int, cross_attention: Any, pair: Pair) -> None:
    pair.flash.cross_attention = cross_attention
    with cpu_as_cuda() as device:
        for seed in range(3):
            features = mel_features(batch, seed=seed)
            assert_same(pair.flash.generate(features, **FORCED), pair.original.generate(features, **FORCED))
    (graph,) = device.graphs
    assert graph.replays == 3 * (TOKENS - 1)
    assert pair.flash.attention_backend["step"] == "graph"


def test_a_graph_for_each_span() -> None:
    """In one session, whose next call replays them."""
    pair = make_pair(max_target_positions=3 * SPAN_STEP)
    length = 2 * SPAN_STEP + 9
    options = FORCED | {"min_new_tokens": length, "max_new_tokens": length}
    with cpu_as_cuda() as device:
        for seed in range(2):
            features = mel_features(2, seed=seed)
            assert_same(pair.flash.generate(features, **options), pair.original.generate(features, **options))
    assert len(device.graphs) == 3


def test_weights_that_change_and_weights_that_move(pair: Pair) -> None:
    """A graph holds addresses: what is written there takes effect, and what moved is captured anew."""
    name, features = "model.decoder.layers.0.self_attn.q_proj.weight", mel_features(2)
    other = make_pair(seed=5).original.state_dict()

    def replace(model: torch.nn.Module) -> None:
        model.get_parameter(name).data = -model.get_parameter(name).data

    changes = {
        "none": (lambda model: None, 1),
        "in place": (lambda model: model.get_parameter(name).data.mul_(-0.5), 1),
        "loaded": (lambda model: model.load_state_dict(other), 1),
        "replaced": (replace, 2),
        "moved": (lambda model: model.double().float(), 3),
    }
    outputs = []
    with cpu_as_cuda() as device:
        for kind, (change, graphs) in changes.items():
            for model in pair:
                change(model)
            outputs.append(pair.original.generate(features, **FORCED))
            assert_same(pair.flash.generate(features, **FORCED), outputs[-1], path=kind)
            assert len(device.graphs) == graphs, kind
    assert not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("seed", range(4))
def test_decoding_stops_where_the_last_sequence_ends(seed: int, pair: Pair) -> None:
    """Also between two looks at the flags, and each sequence is padded from its own end on."""
    for model in pair:
        model.generation_config.suppress_tokens = None
    features = mel_features(4, seed=seed)
    options = {"max_new_tokens": TOKENS, "force_unique_generate_call": True}
    plain = pair.original.generate(features, **options)
    # Whatever the model says often becomes the end, so that sequences end at different steps.
    frequent = int(plain[plain != EOS].mode().values)
    for model in pair:
        model.generation_config.eos_token_id = [EOS, frequent]
    expected = pair.original.generate(features, **options)
    with cpu_as_cuda() as device:
        assert_same(pair.flash.generate(features, **options), expected)
    assert sum(graph.replays for graph in device.graphs) < expected.shape[1] + CHECK_EVERY


def test_a_session_forgets_the_call_before(pair: Pair) -> None:
    """Its forbidden tokens, and the NaNs of a broken recording."""
    features = mel_features(1)
    options = {"begin_suppress_tokens": None, "max_new_tokens": 9}
    expected = pair.original.generate(features, suppress_tokens=None, **options)
    with cpu_as_cuda() as device:
        pair.flash.generate(features * torch.nan, suppress_tokens=list(range(0, 200, 2)), **options)
        outputs = pair.flash.generate(features, suppress_tokens=None, **options)
    assert len(device.graphs) == 1
    assert_same(outputs, expected)


def test_a_session_made_in_inference_mode_serves_outside(pair: Pair) -> None:
    with cpu_as_cuda() as device:
        with torch.inference_mode():
            pair.flash.generate(mel_features(1), **FORCED)
        outputs = pair.flash.generate(mel_features(1), **FORCED)
    assert len(device.graphs) == 1
    assert_same(outputs, pair.original.generate(mel_features(1), **FORCED))


@pytest.mark.parametrize("refusal", [f"{NOT_PERMITTED}\nCompile with TORCH_USE_…", None], ids=["driver", "step"])
def test_a_failed_capture_ends_captures_in_the_process(
    refusal: str | None, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every model, with one warning; graphs that were captured before are not replayed either."""
    other, options = make_pair(seed=5), FORCED | {"max_new_tokens": 9, "min_new_tokens": 9}
    expected = [each.original.generate(mel_features(2), **options) for each in (pair, other)]
    step = GreedySession.step

    def waits(self: GreedySession, span: int) -> None:
        step(self, span)
        if self.places == waiting:
            self._unfinished.any().item()

    waiting = pair.flash.decoder_weights().places()
    with cpu_as_cuda() as device:
        other.flash.generate(mel_features(2), **options)
        if refusal is None:
            monkeypatch.setattr(GreedySession, "step", waits)
        device.refusal = refusal
        with pytest.warns(RuntimeWarning, match=rf"CUDA graphs are off .* \({NOT_PERMITTED}\); decoding goes on"):
            assert_same(pair.flash.generate(mel_features(2), **options), expected[0])
        assert pair.flash.attention_backend["step"].startswith("eager")
        device.refusal = None
        replays = device.graphs[0].replays
        for each, tokens in zip((pair, other), expected, strict=True):
            assert_same(each.flash.generate(mel_features(2), **options), tokens)
            assert each.flash.attention_backend["step"] != "graph"
    assert device.attempts == 2
    assert device.graphs[0].replays == replays
    assert not pair.flash._sessions._idle  # type: ignore[union-attr]


def test_an_error_of_the_step_itself_is_no_failed_capture(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: GreedySession, span: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    expected = pair.original.generate(mel_features(1), **FORCED)
    with cpu_as_cuda() as device:
        with monkeypatch.context() as patch:
            patch.setattr(GreedySession, "step", fail)
            with pytest.raises(torch.OutOfMemoryError):
                pair.flash.generate(mel_features(1), **FORCED)
        assert_same(pair.flash.generate(mel_features(1), **FORCED), expected)
    assert len(device.graphs) == 1


@pytest.mark.parametrize("error", [None, ValueError])
def test_streams_wait_for_each_other(error: type[Exception] | None) -> None:
    """The stream of captured decoding for the caller's, and that for it, whatever happens between."""
    with cpu_as_cuda() as device:
        caller = device.current
        with suppress(ValueError), on_decoding_stream(CPU):
            stream = device.current
            assert stream.waits_for == [caller]
            assert not caller.waits_for
            if error is not None:
                raise error
        assert device.current is caller
        assert caller.waits_for == [stream]
        with on_decoding_stream(CPU):
            assert device.current is stream
