"""Whatever a user plugs into generate is called as the original calls it: same times, same arguments."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from .compare import assert_same
from .tiny import EOS, Pair, mel_features, tiny_generation_config

TOKENS = 8


class RecordingProcessor(LogitsProcessor):
    """Keeps what it is given, and forbids `forbidden`: in place, or in a copy."""

    def __init__(self, forbidden: int = 13, in_place: bool = False) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.forbidden = forbidden
        self.in_place = in_place

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append((input_ids.clone(), scores.clone()))
        if not self.in_place:
            scores = scores.clone()
        scores[:, self.forbidden] = -torch.inf
        return scores


class EndingProcessor(LogitsProcessor):
    """Makes row i end at step 2 + 3 i, whatever the model would say."""

    def __init__(self, begin: int) -> None:
        self.begin = begin

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.begin
        for row in range(scores.shape[0]):
            if step == 2 + 3 * row:
                scores[row] = -torch.inf
                scores[row, EOS] = 0
        return scores


class RecordingCriteria(StoppingCriteria):
    """Keeps what it is given, and ends rows when they are as long as `limits` says, which repeats."""

    def __init__(self, limits: list[int]) -> None:
        self.seen: list[Any] = []
        self.limits = torch.tensor(limits)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.seen.append((input_ids.clone(), scores, sorted(kwargs)))
        rows = torch.arange(input_ids.shape[0]) % len(self.limits)
        return input_ids.shape[1] >= self.limits[rows]


class RecordingStreamer(BaseStreamer):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.events.append(value.clone())

    def end(self) -> None:
        self.events.append("end")


MODES = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "sampled": {"temperature": 0.8},
    "scores": {"return_dict_in_generate": True, "output_scores": True},
    "timestamps": {"return_timestamps": True},
    "penalised": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("in_place", [False, True], ids=["copying", "in place"])
@pytest.mark.parametrize("mode", list(MODES))
def test_logits_processors(mode: str, in_place: bool, pair: Pair) -> None:
    """Two of them, so that their order shows."""
    outputs, seen = [], []
    for model in pair:
        torch.manual_seed(1)
        processors = [RecordingProcessor(13, in_place), RecordingProcessor(47, in_place)]
        outputs.append(
            model.generate(mel_features(2), max_new_tokens=TOKENS, logits_processor=processors, **MODES[mode])
        )
        seen.append([processor.seen for processor in processors])
    assert len(seen[0][0]) >= TOKENS
    assert_same(seen[1], seen[0])
    assert_same(outputs[1], outputs[0])


@pytest.mark.parametrize("mode", list(MODES))
def test_stopping_criteria(mode: str, pair: Pair) -> None:
    outputs, seen = [], []
    for model in pair:
        torch.manual_seed(1)
        criteria = RecordingCriteria([5, 8])
        outputs.append(
            model.generate(mel_features(2), max_new_tokens=TOKENS, stopping_criteria=[criteria], **MODES[mode])
        )
        seen.append(criteria.seen)
    assert len(seen[0]) >= 2
    assert_same(seen[1], seen[0])
    assert_same(outputs[1], outputs[0])


@pytest.mark.parametrize("scored", [False, True], ids=["tokens", "scores"])
def test_rows_end_one_after_the_other(scored: bool, pair: Pair) -> None:
    options = {"return_dict_in_generate": scored, "output_scores": scored}
    outputs = [
        model.generate(mel_features(4), max_new_tokens=16, logits_processor=[EndingProcessor(begin=2)], **options)
        for model in pair
    ]
    assert_same(outputs[1], outputs[0])


@pytest.mark.parametrize("options", [{"suppress_tokens": [EOS, 13]}, {"min_new_tokens": 16}], ids=str)
def test_processor_that_allows_the_end_again(options: dict[str, Any], pair: Pair) -> None:
    """The end of sequence was forbidden by what comes before it in the list."""
    outputs = [
        model.generate(mel_features(3), max_new_tokens=16, logits_processor=[EndingProcessor(begin=2)], **options)
        for model in pair
    ]
    assert_same(outputs[1], outputs[0])


def test_processor_that_raises(pair: Pair) -> None:
    """Its own exception comes out, and the model works as before."""

    class Failing(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError("from the processor")

    expected = pair.flash.generate(mel_features(2), max_new_tokens=TOKENS)
    with pytest.raises(ArithmeticError, match="from the processor"):
        pair.flash.generate(mel_features(2), max_new_tokens=TOKENS, logits_processor=[Failing()])
    assert_same(pair.flash.generate(mel_features(2), max_new_tokens=TOKENS), expected)


def test_subclass_of_a_known_processor(pair: Pair) -> None:
    """Recognised by its exact type, or its override would be lost."""
    from transformers import SuppressTokensLogitsProcessor

    class Opposite(SuppressTokensLogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return -scores

    outputs = [
        model.generate(mel_features(2), max_new_tokens=TOKENS, logits_processor=[Opposite([13])]) for model in pair
    ]
    assert_same(outputs[1], outputs[0])
    plain = pair.flash.generate(mel_features(2), max_new_tokens=TOKENS)
    assert plain.shape != outputs[1].shape or not torch.equal(outputs[1], plain)


@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_streamer(mode: str, pair: Pair) -> None:
    events = []
    for model in pair:
        torch.manual_seed(1)
        streamer = RecordingStreamer()
        model.generate(mel_features(1), max_new_tokens=TOKENS, streamer=streamer, **MODES[mode])
        events.append(streamer.events)
    assert events[0][-1] == "end"
    assert len(events[0]) >= TOKENS
    assert_same(events[1], events[0])


def test_streamer_with_beams_raises_as_the_original(pair: Pair) -> None:
    for model in pair:
        with pytest.raises(ValueError, match="streamer"):
            model.generate(mel_features(1), streamer=RecordingStreamer(), num_beams=2)


HOOKED = [
    "model",
    "model.encoder",
    "model.encoder.layers.0.self_attn",
    "model.decoder",
    "model.decoder.embed_tokens",
    "model.decoder.layers.0",
    "model.decoder.layers.1.self_attn",
    "model.decoder.layers.1.self_attn.q_proj",
    "model.decoder.layers.0.encoder_attn",
    "model.decoder.layers.0.encoder_attn.k_proj",
    "model.decoder.layers.1.fc1",
    "model.decoder.layer_norm",
    "proj_out",
]


@pytest.mark.parametrize("name", HOOKED)
def test_forward_hook_sees_every_call(name: str, pair: Pair) -> None:
    """Also one registered after a generate call that needed none; and none is needed after its removal."""
    records = []
    for model in pair:
        model.generate(mel_features(2), max_new_tokens=4)
        record: list[list[torch.Tensor]] = []

        def keep(module: Any, args: Any, output: Any, record: Any = record) -> None:
            record.append([value.clone() for value in _flat_tensors(output)])

        handle = model.get_submodule(name).register_forward_hook(keep)
        model.generate(mel_features(2), max_new_tokens=4)
        handle.remove()
        count = len(record)
        model.generate(mel_features(2), max_new_tokens=4)
        assert len(record) == count
        records.append(record)
    assert records[0]
    assert_same(records[1], records[0])


def _flat_tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = [output["last_hidden_state"]]
    return [value for value in output if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("name", [HOOKED[index] for index in (2, 5, 7, 9, 10, 12)])
@pytest.mark.parametrize("kind", ["forward", "pre", "instance"])
def test_hook_that_changes_the_result(kind: str, name: str, pair: Pair) -> None:
    """Forward hooks, forward pre-hooks, and the `forward` that accelerate puts on an instance."""

    def scaled(value: Any) -> Any:
        return (scaled(value[0]), *value[1:]) if isinstance(value, tuple) else value * 0.5

    def with_scaled_input(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (args[0] if args[0].dtype == torch.long else args[0] * 0.5, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] * 0.5}

    outputs = []
    plain = pair.original.generate(mel_features(2), max_new_tokens=TOKENS, **MODES["scores"])
    for model in pair:
        model.generate(mel_features(2), max_new_tokens=4)
        module = model.get_submodule(name)
        if kind == "forward":
            module.register_forward_hook(lambda module, args, output: scaled(output))
        elif kind == "pre":
            module.register_forward_pre_hook(with_scaled_input, with_kwargs=True)
        else:
            inner = module.forward
            module.forward = lambda *args, inner=inner, **kwargs: scaled(inner(*args, **kwargs))
        outputs.append(model.generate(mel_features(2), max_new_tokens=TOKENS, **MODES["scores"]))
        outputs.append(model.generate(mel_features(2), max_new_tokens=TOKENS))
    assert_same(outputs[2:], outputs[:2])
    assert any(not torch.equal(a, b) for a, b in zip(plain.scores, outputs[0].scores, strict=False))


def test_global_hook(pair: Pair) -> None:
    """One for all modules, as profilers install it."""
    names: list[list[str]] = []
    for model in pair:
        seen: list[str] = []
        handle = torch.nn.modules.module.register_module_forward_hook(
            lambda module, args, output, seen=seen: seen.append(type(module).__name__)
        )
        model.generate(mel_features(1), max_new_tokens=3)
        handle.remove()
        names.append([name for name in seen if name in ("Linear", "LayerNorm", "Embedding")])
    assert names[0]
    assert names[1] == names[0]


@pytest.mark.parametrize("shared", [{}, {"temperature": 0.5}, {"return_timestamps": True}], ids=str)
def test_custom_generate(shared: dict[str, Any], pair: Pair) -> None:
    """The user's own loop has precedence over ours, and gets what the original hands it."""
    calls: list[list[str]] = []

    def loop(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        calls.append(sorted(kwargs))
        return torch.cat([input_ids, torch.full((len(input_ids), 3), 17)], dim=1)

    outputs = [model.generate(mel_features(2), custom_generate=loop, **shared) for model in pair]
    assert_same(outputs[1], outputs[0])
    assert calls[0] == calls[1]
    assert (outputs[1] == 17).any()


def test_subclass_with_its_own_forward(pair: Pair) -> None:
    """A user's subclass that changes the logits must be heard in generate."""

    def subclass(base: type) -> type:
        class Negated(base):
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                output = super().forward(*args, **kwargs)
                output["logits"] = -output["logits"]
                return output

        return Negated

    outputs = []
    for model in pair:
        derived = subclass(type(model))(model.config).eval()
        derived.load_state_dict(model.state_dict())
        derived.generation_config = model.generation_config
        outputs.append(derived.generate(mel_features(2), max_new_tokens=TOKENS))
    assert_same(outputs[1], outputs[0])


BAD_ARGUMENTS: dict[str, dict[str, Any]] = {
    "unknown argument": {"no_such_argument": 1},
    "negative length": {"max_new_tokens": -1},
    "too long": {"max_new_tokens": 1000},
    "task of an English model": {"task": "translate"},
    "language of an English model": {"language": "fr"},
    "condition type": {"prompt_condition_type": "sometimes"},
    "condition without conditioning": {"prompt_condition_type": "all-segments"},
    "unsupported mode": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "several sequences without sampling": {"num_return_sequences": 2},
    "cache implementation": {"cache_implementation": "no such cache"},
    "cache of another type": {"past_key_values": ((1,),)},
    "stopping criteria": {"stopping_criteria": 3},
    "logits processor": {"logits_processor": 3},
}


@pytest.mark.parametrize("name", list(BAD_ARGUMENTS))
def test_bad_arguments_raise_as_the_original(name: str, pair: Pair) -> None:
    raised = []
    for model in pair:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            model.generate(mel_features(2), **BAD_ARGUMENTS[name])
        raised.append(caught)
    assert raised[1].type is raised[0].type
    assert str(raised[1].value) == str(raised[0].value)


BAD_FEATURES = {
    "none": None,
    "wrong mel bins": torch.zeros(1, 70, 100),
    "two dimensions": torch.zeros(80, 100),
    "half in a float model": torch.zeros(1, 80, 100, dtype=torch.float16),
    "integers": torch.zeros(1, 80, 100, dtype=torch.long),
    "empty batch": torch.zeros(0, 80, 100),
    "long without mask": torch.zeros(2, 80, 230),
}


@pytest.mark.parametrize("name", list(BAD_FEATURES))
def test_bad_features_raise_as_the_original(name: str, pair: Pair) -> None:
    raised = []
    for model in pair:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            model.generate(BAD_FEATURES[name], max_new_tokens=4)
        raised.append(caught)
    assert raised[1].type is raised[0].type


def test_bad_language_raises_as_the_original(multilingual_pair: Pair) -> None:
    for options in ({"language": "xx"}, {"language": ["en"]}, {"language": "en", "task": "sing"}):
        messages = []
        for model in multilingual_pair:
            with pytest.raises(ValueError) as caught:  # noqa: PT011
                model.generate(mel_features(2), **options)
            messages.append(str(caught.value))
        assert messages[1] == messages[0]


def test_arguments_are_left_alone(pair: Pair) -> None:
    """Neither the model's generation config nor one that is passed differs afterwards from the original's."""
    configs = []
    for model in pair:
        passed = tiny_generation_config(False, model.config)
        model.generate(mel_features(2), generation_config=passed, max_new_tokens=4, return_token_timestamps=True)
        configs.append((model.generation_config.to_dict(), passed.to_dict()))
        assert isinstance(model.generation_config, GenerationConfig)
    assert configs[1] == configs[0]
