"""Whatever changes a weight between two calls of generate, the second call uses the new one."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from .compare import assert_close, assert_same
from .tiny import Pair, decoder_tokens, make_pair, mel_features

NAMES = [
    "model.encoder.conv1.weight",
    "model.encoder.layers.0.self_attn.k_proj.weight",
    "model.encoder.layers.1.fc1.bias",
    "model.decoder.embed_tokens.weight",
    "model.decoder.embed_positions.weight",
    "model.decoder.layers.0.self_attn.q_proj.weight",
    "model.decoder.layers.0.self_attn.q_proj.bias",
    "model.decoder.layers.1.self_attn.v_proj.weight",
    "model.decoder.layers.1.self_attn.out_proj.weight",
    "model.decoder.layers.0.encoder_attn.k_proj.weight",
    "model.decoder.layers.0.encoder_attn.v_proj.bias",
    "model.decoder.layers.1.encoder_attn.q_proj.weight",
    "model.decoder.layers.0.fc2.weight",
    "model.decoder.layers.1.final_layer_norm.weight",
    "model.decoder.layer_norm.bias",
]


def generated(model: nn.Module) -> dict[str, object]:
    """Scores as well as tokens: a small change of weights may leave the tokens as they are."""
    output = model.generate(
        mel_features(2, dtype=model.dtype), max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    return {"sequences": output.sequences, "scores": output.scores}


def plain(model: nn.Module) -> torch.Tensor:
    """Tokens alone, which a faster way than the one with scores may serve."""
    return model.generate(mel_features(2), max_new_tokens=4)


def assert_change_is_seen(pair: Pair, change: Callable[[nn.Module], None]) -> None:
    before = generated(pair.original)
    plain(pair.flash)
    for _ in range(2):  # the second round changes what the first has derived
        for model in pair:
            change(model)
            model.eval()  # modules are made in training mode, which would itself be seen
        after = generated(pair.original)
        assert any(not torch.equal(a, b) for a, b in zip(before["scores"], after["scores"], strict=False))
        assert_same(plain(pair.flash), plain(pair.original))
        assert_same(generated(pair.flash), after)
        before = after


def roughened(value: torch.Tensor) -> torch.Tensor:
    """`value` with noise of its own size, the same for both models of a pair."""
    noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(7))
    return value + 0.5 * noise * value.std()


@pytest.mark.parametrize("name", NAMES)
def test_in_place(pair: Pair, name: str) -> None:
    @torch.no_grad()
    def change(model: nn.Module) -> None:
        parameter = model.get_parameter(name)
        parameter.copy_(roughened(parameter))

    assert_change_is_seen(pair, change)


@pytest.mark.parametrize("name", NAMES[3:8])
def test_in_place_behind_autograds_back(pair: Pair, name: str) -> None:
    """Through `.data`, no version counter moves."""

    def change(model: nn.Module) -> None:
        data = model.get_parameter(name).data
        data.copy_(roughened(data))

    assert_change_is_seen(pair, change)


@pytest.mark.parametrize("name", NAMES)
def test_storage_replaced(pair: Pair, name: str) -> None:
    def change(model: nn.Module) -> None:
        parameter = model.get_parameter(name)
        parameter.data = roughened(parameter.data)

    assert_change_is_seen(pair, change)


@pytest.mark.parametrize("name", [name for name in NAMES if "embed_tokens" not in name])
def test_parameter_replaced(pair: Pair, name: str) -> None:
    def change(model: nn.Module) -> None:
        owner, _, attribute = name.rpartition(".")
        value = roughened(model.get_parameter(name).detach())
        setattr(model.get_submodule(owner), attribute, nn.Parameter(value))

    assert_change_is_seen(pair, change)


def test_untied_projection(pair: Pair) -> None:
    def change(model: nn.Module) -> None:
        model.proj_out.weight = nn.Parameter(roughened(model.proj_out.weight.detach()))

    assert_change_is_seen(pair, change)


class Halved(nn.Module):
    """A stand-in for what adapters and quantisers put in a linear layer's place: no weight of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 0.5 * self.inner(hidden_states)


@pytest.mark.parametrize(
    "name",
    [
        "model.encoder.layers.0.self_attn.q_proj",
        "model.encoder.layers.0.fc1",
        "model.decoder.layers.0.self_attn.q_proj",
        "model.decoder.layers.0.self_attn.v_proj",
        "model.decoder.layers.1.self_attn.out_proj",
        "model.decoder.layers.0.encoder_attn.k_proj",
        "model.decoder.layers.1.encoder_attn.q_proj",
        "model.decoder.layers.0.encoder_attn.out_proj",
        "model.decoder.layers.0.fc1",
        "model.decoder.layers.1.fc2",
        "model.decoder.layers.0.self_attn_layer_norm",
        "model.decoder.layer_norm",
        "proj_out",
    ],
)
def test_module_wrapped(pair: Pair, name: str) -> None:
    def change(model: nn.Module) -> None:
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, Halved(model.get_submodule(name)))

    assert_change_is_seen(pair, change)


@pytest.mark.parametrize(
    "name", ["model.decoder.layers.0.fc1", "model.decoder.layers.1.self_attn.k_proj", "model.encoder.layers.0.fc2"]
)
def test_parametrised(pair: Pair, name: str) -> None:
    """A weight that is computed anew at each access."""

    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    def change(model: nn.Module) -> None:
        nn.utils.parametrize.register_parametrization(model.get_submodule(name), "weight", Doubled())

    assert_change_is_seen(pair, change)


@pytest.mark.parametrize("name", ["model.decoder.layers.0.encoder_attn_layer_norm", "model.decoder.layer_norm"])
def test_norm_replaced_around_its_weights(pair: Pair, name: str) -> None:
    """Another module with another epsilon; the parameters are the same objects."""

    def change(model: nn.Module) -> None:
        owner, _, attribute = name.rpartition(".")
        old = model.get_submodule(name)
        new = nn.LayerNorm(old.normalized_shape, eps=10 * old.eps + 0.1)
        new.weight, new.bias = old.weight, old.bias
        setattr(model.get_submodule(owner), attribute, new)

    assert_change_is_seen(pair, change)


def test_layer_removed(pair: Pair) -> None:
    """Pruning decoder layers, as distillation does."""
    for model in pair:
        model.generate(mel_features(2), max_new_tokens=4)
        model.model.decoder.layers = model.model.decoder.layers[:1]
        model.config.decoder_layers = 1
    assert_same(generated(pair.flash), generated(pair.original))


def test_activation_replaced(pair: Pair) -> None:
    def change(model: nn.Module) -> None:
        layer = model.model.decoder.layers[1]
        layer.activation_fn = nn.Tanh() if not isinstance(layer.activation_fn, nn.Tanh) else nn.ReLU()

    assert_change_is_seen(pair, change)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW], ids=["SGD", "AdamW"])
def test_training_between_generations(optimizer: type[torch.optim.Optimizer]) -> None:
    pair = make_pair()
    optimizers = [optimizer(model.parameters(), lr=1e-2) for model in pair]
    labels = decoder_tokens(2, 7, seed=3)
    losses: dict[nn.Module, list[torch.Tensor]] = {model: [] for model in pair}
    for _ in range(3):
        for model, stepper in zip(pair, optimizers, strict=True):
            model.eval()
            model.generate(mel_features(2), max_new_tokens=4)
            model.train()
            loss = model(mel_features(2), labels=labels).loss
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            losses[model].append(loss.detach())
    assert losses[pair.original][-1] < losses[pair.original][0]
    assert_close(torch.stack(losses[pair.flash]), torch.stack(losses[pair.original]), 2e-3)
    # Training amplifies rounding, AdamW above all: from here on compare with the very same weights.
    pair.original.load_state_dict(pair.flash.state_dict())
    assert_same(generated(pair.eval().flash), generated(pair.original))


def test_requires_grad_survives(pair: Pair) -> None:
    frozen = "model.decoder.layers.0.self_attn.k_proj.weight"
    pair.flash.get_parameter(frozen).requires_grad_(False)
    pair.flash.generate(mel_features(1), max_new_tokens=4)
    flags = {name: parameter.requires_grad for name, parameter in pair.flash.named_parameters()}
    assert flags.pop(frozen) is False
    assert flags.pop("model.encoder.embed_positions.weight") is False
    assert all(flags.values())
