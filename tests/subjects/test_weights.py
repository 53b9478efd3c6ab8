import gc
import weakref

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from perf_tests.matrix.cases import CHECKPOINTS, Cell
from perf_tests.matrix.vocabulary import vocabulary_of
from perf_tests.measure.procedure import rates
from perf_tests.subjects.subject import Stage, clear_frames
from perf_tests.subjects.weights import MODEL_CLASSES, ZEROS, Weights, make_config, make_layouts, make_state_dict

# Distinct parameters of the published checkpoints.
PUBLISHED_PARAMETERS = {
    "tiny.en": 37_760_256,
    "base.en": 72_593_408,
    "small.en": 241_734_144,
    "medium.en": 763_856_896,
    "large-v3": 1_543_490_560,
    "large-v3-turbo": 808_878_080,
    "distil-large-v3": 756_405_760,
}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_dimensions_give_the_published_number_of_parameters(checkpoint: str) -> None:
    config = make_config(Cell(checkpoint, CHECKPOINTS[checkpoint].decoder_layers, "single"))
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED_PARAMETERS[checkpoint]


def test_a_checkpoint_of_the_hub_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Whisper(torch.nn.Module):
        @classmethod
        def from_pretrained(cls, name: str, *, local_files_only: bool, **other: object) -> "Whisper":
            asked.append(local_files_only)
            return cls()

    monkeypatch.setitem(MODEL_CLASSES, "original", Whisper)
    weights = Weights(Cell("tiny.en", 4, "single"), "pretrained")
    for _ in range(3):
        weights.build("original", torch.device("cpu"), torch.float32)
    assert asked == [False, True, True]


def test_weights_repeat_and_nest(mini_cell: Cell) -> None:
    deep = make_state_dict(make_layouts(make_config(mini_cell)))
    shallow = make_state_dict(make_layouts(make_config(mini_cell._replace(decoder_layers=1))))
    assert set(shallow) < set(deep)
    for name, tensor in shallow.items():
        assert torch.equal(tensor, deep[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_depths_have_in_common_is_made_once(
    mini_cell: Cell, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def make(name: str, shape: torch.Size) -> torch.Tensor:
        made.append(name)
        return torch.ones(shape)

    monkeypatch.setattr("perf_tests.subjects.weights._make_tensor", make)
    weights = None
    for layers in (1, 2, 1):
        weights = Weights(mini_cell._replace(decoder_layers=layers), "random", weights)
        for implementation in ("original", "flash"):
            model = weights.build(implementation, torch.device("cpu"), dtype)
            assert len(model.model.decoder.layers) == layers
            assert model.dtype == dtype
    assert sorted(made) == sorted(make_layouts(make_config(mini_cell)))
    for other in (
        Weights(mini_cell._replace(checkpoint="tiny.en"), "random", weights),
        Weights(mini_cell, ZEROS, weights),
    ):
        assert not other._random


def test_all_implementations_have_the_same_weights_in_storage_of_their_own(mini_cell: Cell) -> None:
    weights = Weights(mini_cell, "random")
    models = [weights.build(name, torch.device("cpu"), torch.float32) for name in ("original", "eager", "flash")]
    states = [model.state_dict() for model in models]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        assert torch.equal(tensor, states[2][name]), name
    pointers = [{tensor.data_ptr() for tensor in state.values()} for state in states]
    assert not pointers[0] & pointers[1] | pointers[1] & pointers[2]
    assert [model.config._attn_implementation for model in models[:2]] == ["sdpa", "eager"]


def test_logits_depend_on_the_audio_and_on_every_earlier_token(stage: Stage) -> None:
    subject = stage.build("original")
    tokens = torch.randint(50_000, (1, 6), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def last(features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return subject.model(input_features=features, decoder_input_ids=tokens).logits[0, -1]

    features = subject.features[:1]
    usual = last(features, tokens)
    late = features.clone()
    late[..., 2500:] = 0
    assert (last(late, tokens) - usual).abs().max() > 1e-2 * usual.abs().max()
    for position in range(5):
        other = tokens.clone()
        other[0, position] += 1
        assert (last(features, other) - usual).abs().max() > 1e-3 * usual.abs().max(), position


@pytest.mark.parametrize(("size", "prompt"), [(51864, 2), (51865, 4), (51866, 4)])
def test_vocabularies(size: int, prompt: int) -> None:
    vocabulary = vocabulary_of(size)
    assert len(vocabulary.prompt) == prompt
    assert max(*vocabulary.suppress, *vocabulary.prompt) < size
    assert vocabulary.multilingual == (prompt == 4)
    assert not {*vocabulary.suppress} & {vocabulary.end_of_text}


def test_an_unpublished_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="51000"):
        vocabulary_of(51000)


def test_a_multilingual_checkpoint_generates(mini_cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHECKPOINTS, mini_cell.checkpoint, CHECKPOINTS[mini_cell.checkpoint]._replace(vocab_size=51866))
    vocabulary = vocabulary_of(51866)
    model = Weights(mini_cell, "random").build("original", torch.device("cpu"), torch.float32)
    calls = []
    model.model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"]), with_kwargs=True
    )
    tokens = model.generate(torch.zeros(1, 80, 3000), **vocabulary.generate_arguments(3))
    assert tokens.shape == (1, 3)
    assert tuple(calls[0][0].tolist()) == vocabulary.prompt


def test_a_cleared_stage_leaves_nothing_behind(stage: Stage) -> None:
    subjects = [stage.build("original"), stage.build("flash")]
    for subject in subjects:
        subject.run_round()
    models = [weakref.ref(subject.model) for subject in subjects]
    del subject
    stage.clear()
    assert [model() for model in models] == [None, None]


def test_a_borrowed_subject_is_given_back(stage: Stage) -> None:
    with stage.borrow("original") as subject:
        model = weakref.ref(subject.model)
    assert model() is None


def test_frames_of_an_error_let_go() -> None:
    class Large:
        pass

    def fail() -> None:
        large = Large()
        references.append(weakref.ref(large))
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    references: list[weakref.ref[Large]] = []
    with pytest.raises(ValueError, match="second") as info:
        fail()
    assert references[0]() is not None
    clear_frames(info.value)
    gc.collect()
    assert references[0]() is None


def test_rates(mini_cell: Cell) -> None:
    from perf_tests.matrix.cases import Case

    record = rates(Case(*mini_cell, "flash"), [0.5, 0.1, 9.0])
    assert record == {"tokens_per_second": 2 * 5 / 0.5, "real_time_factor": 0.5 / 60}
