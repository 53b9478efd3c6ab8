"""What people do with a Whisper around `generate`: each case on Transformers' class and on ours, compared.

A case is a function of a model that returns what can be compared, to the last digit: training and saving go through the
original's own code, and whatever tells the two apart there is a fault. Widths and dtypes matter, for which kernels
serve, and what they would like weights to look like, depends on both.
"""

import copy
import functools
import io
import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers.modeling_outputs import BaseModelOutput

from .compare import EXACT, assert_same
from .tiny import SOURCE_POSITIONS, START, Pair, decoder_tokens, make_pair, mel_features

Case = Callable[[Any], Any]
CASES: dict[str, Case] = {}
# Cases that no width decides: tracing is slow, and a configuration is a configuration.
ONE_WIDTH: set[str] = set()
WIDTHS = {64: 4, 384: 6, 512: 8, 768: 12}
"""Heads by width: Whisper's own widths, and a small one."""


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def case_of_one_width(function: Case) -> Case:
    ONE_WIDTH.add(function.__name__)
    return case(function)


@functools.cache
def _made(width: int, dtype: torch.dtype) -> Pair:
    return make_pair(
        dtype,
        d_model=width,
        encoder_attention_heads=WIDTHS[width],
        decoder_attention_heads=WIDTHS[width],
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        encoder_layers=1,
    )


def generate(model: Any, **options: Any) -> Any:
    """Token ids; in half precision None, for there near ties may go either way."""
    features = mel_features(2, dtype=model.dtype)
    ids = model.generate(features, **{"max_new_tokens": 6} | options)
    return ids if model.dtype == torch.float32 else None


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def gradients(model: Any) -> None:
    features = mel_features(2, dtype=model.dtype)
    model(input_features=features, labels=decoder_tokens(2, 5)).loss.backward()


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    gradients(model)
    optimizer.step()
    optimizer.zero_grad()


def train(model: Any, kind: type[torch.optim.Optimizer] = torch.optim.AdamW, **options: Any) -> dict[str, Tensor]:
    optimizer = kind(model.parameters(), lr=1e-2, **{"fused": True} | options)
    for _ in range(2):
        step(model, optimizer)
    return parameters(model)


def saved(model: Any) -> dict[str, Tensor]:
    """What is read back from what was saved."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        (file,) = Path(folder).glob("*.safetensors")
        return load_file(file)


def saved_config(model: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return json.loads(Path(folder, "config.json").read_text())


OPTIMIZERS = {
    "fused_adamw": (torch.optim.AdamW, {"fused": True}),
    "fused_adam": (torch.optim.Adam, {"fused": True}),
    "fused_sgd": (torch.optim.SGD, {"fused": True, "momentum": 0.9}),
    "foreach_adamw": (torch.optim.AdamW, {"fused": False, "foreach": True}),
    "foreach_sgd": (torch.optim.SGD, {"fused": False, "foreach": True, "momentum": 0.9}),
    "foreach_rmsprop": (torch.optim.RMSprop, {"foreach": True}),
    "plain_rmsprop": (torch.optim.RMSprop, {"foreach": False}),
}


def training_with(kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> Case:
    def with_generate_between(model: Any) -> Any:
        generate(model)
        optimizer = kind(model.parameters(), lr=1e-2, **options)
        for _ in range(2):
            step(model, optimizer)
            generate(model)
        return parameters(model)

    return with_generate_between


for _name, (_kind, _options) in OPTIMIZERS.items():
    CASES[f"training_with_{_name}_and_generate_between"] = training_with(_kind, _options)


@case
def training_behind_generate_and_to(model: Any) -> Any:
    """What a Trainer does that evaluates first."""
    generate(model)
    return train(model.to("cpu").train())


@case
def training_with_generate_between_in_train_mode(model: Any) -> Any:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2, fused=True)
    for _ in range(2):
        step(model, optimizer)
        generate(model)
    return parameters(model), model.training


@case
def training_behind_generate_in_inference_mode(model: Any) -> Any:
    with torch.inference_mode():
        generate(model)
    return train(model), generate(model)


@case
def gradients_behind_generate(model: Any) -> Any:
    generate(model)
    gradients(model)
    return {name: (value.grad, value.grad.stride()) for name, value in model.named_parameters() if value.requires_grad}


@case
def an_exponential_average(model: Any) -> Any:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    for _ in range(2):
        generate(model)
        step(model, optimizer)
        average.update_parameters(model)
        generate(average.module)
    return parameters(average), saved(average.module)


@case
def parameters_as_they_were(model: Any) -> Any:
    """Strides, places, storages and identities, which saving, sharing and optimisers go by, during `generate` too."""

    def seen() -> list[Any]:
        return [
            (name, id(value), value.data_ptr(), value.stride(), value.untyped_storage().nbytes())
            for name, value in model.named_parameters()
        ]

    before, during = seen(), []
    generate(model, prefix_allowed_tokens_fn=lambda row, ids: during.append(seen()) or list(range(100)))
    return len(during) > 6, [each == before for each in during], seen() == before


@case
def a_state_dict_taken_before(model: Any) -> Any:
    """It shares its memory with the model, before and after."""
    state = model.state_dict()
    generate(model)
    train(model)
    return dict(state), [value.data_ptr() == state[name].data_ptr() for name, value in model.named_parameters()]


@case
def a_state_dict_that_is_assigned(model: Any) -> Any:
    generate(model)
    state = {name: 0.9 * value for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    tokens = generate(model)
    return tokens, [value.data_ptr() == state[name].data_ptr() for name, value in model.named_parameters()]


@case
def saving(model: Any) -> Any:
    generate(model)
    return saved(model), model.config.architectures


@case
def saving_behind_to(model: Any) -> Any:
    generate(model)
    return saved(model.to("cpu"))


@case
def saving_behind_half(model: Any) -> Any:
    generate(model)
    return saved(model.half())


@case
def saving_a_deep_copy(model: Any) -> Any:
    generate(model)
    return saved(copy.deepcopy(model))


@case
def saving_what_was_pickled(model: Any) -> Any:
    generate(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    size = buffer.tell()
    buffer.seek(0)
    # As large as the original's but for the names of classes: nothing is stored twice, nothing derived.
    return saved(torch.load(buffer, weights_only=False)), round(size, -4)


@case
def saving_the_inner_model(model: Any) -> Any:
    generate(model)
    return saved(model.model)


@case
def saving_the_decoder_by_safetensors(model: Any) -> Any:
    generate(model)
    return dict(sorted(load(save(model.model.decoder.state_dict())).items()))


@case
def saving_while_another_thread_generates(model: Any) -> Any:
    tokens: list[Any] = []
    thread = threading.Thread(target=lambda: tokens.extend(generate(model) for _ in range(3)))
    thread.start()
    files = [saved(model) for _ in range(3)]
    thread.join()
    return files, tokens


@case
def parameters_as_a_vector_and_back(model: Any) -> Any:
    generate(model)
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(0.9 * vector, model.parameters())
    return vector, generate(model), train(model)


@case
def pruning(model: Any) -> Any:
    generate(model)
    layer = model.model.decoder.layers[0]
    for part in (layer.fc1, layer.self_attn.v_proj):
        prune.l1_unstructured(part, "weight", 0.5)
    pruned = generate(model)
    prune.remove(layer.fc1, "weight")
    return pruned, generate(model), dict(model.state_dict())


@case
def a_seeded_reset_in_place(model: Any) -> Any:
    """The same numbers go to the same places."""
    generate(model)
    torch.manual_seed(7)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(std=0.1)
    return parameters(model)


@case
def memory_that_is_shared(model: Any) -> Any:
    """Hogwild and data loaders: it stays shared, and what another process writes there is seen."""
    model.share_memory()
    others = {name: value.detach() for name, value in model.named_parameters()}
    generate(model)
    for value in others.values():
        value.mul_(0.9)
    return generate(model), parameters(model), [value.is_shared() for value in model.parameters()]


@case
def models_that_share_an_encoder(model: Any) -> Any:
    other = copy.deepcopy(model)
    other.model.encoder = model.model.encoder
    tokens = generate(model), generate(other)
    train(other)
    return tokens, generate(model), generate(other), parameters(model), parameters(other)


@case
def an_adapter_merged_and_unmerged(model: Any) -> Any:
    peft = pytest.importorskip("peft", reason="adapters need `peft`")
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "fc1"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    tokens = [generate(adapted)]
    for change in (adapted.merge_adapter, adapted.unmerge_adapter):
        change()
        tokens.append(generate(adapted))
    merged = adapted.merge_and_unload()
    return tokens, generate(merged), parameters(merged)


@case
def layers_taken_away(model: Any) -> Any:
    """With and without word of it in the configuration, which Transformers' cache does not need."""
    generate(model)
    model.model.decoder.layers = model.model.decoder.layers[:1].eval()
    tokens = generate(model)
    model.config.decoder_layers = 1
    return tokens, generate(model)


@case
def a_projection_with_a_bias(model: Any) -> Any:
    generate(model)
    model.proj_out.bias = nn.Parameter(torch.linspace(-3, 3, len(model.proj_out.weight), dtype=model.dtype))
    return generate(model)


@case
def a_changed_scaling(model: Any) -> Any:
    generate(model)
    for layer in model.model.decoder.layers:
        layer.self_attn.scaling = layer.encoder_attn.scaling = 0.02
    return generate(model)


@case
def an_output_that_a_hook_keeps(model: Any) -> Any:
    """Nothing is written over what others may hold."""
    kept: list[tuple[Tensor, Tensor]] = []
    attention = model.model.encoder.layers[0].self_attn
    attention.out_proj.register_forward_hook(lambda module, args, output: kept.append((output, output.clone())))
    with torch.no_grad():
        model.model.encoder(mel_features(2, dtype=model.dtype))
    return [torch.equal(*each) for each in kept]


class Doubling(Tensor):
    """Stands for quantised weights: what they compute must be asked of them."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.linear:
            x, weight, *rest = args
            return nn.functional.linear(x, 2 * weight.as_subclass(Tensor), *rest, **(kwargs or {}))
        return super().__torch_function__(function, types, args, kwargs or {})


@case
def weights_of_a_tensor_subclass(model: Any) -> Any:
    for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
        for part in (layer.fc1, layer.self_attn.q_proj):
            part.weight = nn.Parameter(part.weight.detach().as_subclass(Doubling), requires_grad=False)
    return generate(model)


@case
def sparse_weights(model: Any) -> Any:
    for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
        layer.fc1.weight = nn.Parameter(layer.fc1.weight.detach().to_sparse(), requires_grad=False)
    return generate(model)


@case
def weights_stored_by_columns(model: Any) -> Any:
    for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
        for part in (layer.fc1, layer.self_attn.q_proj):
            part.weight = nn.Parameter(part.weight.detach().t().contiguous().t())
    return generate(model), layer.fc1.weight.stride()


@case
def weights_by_a_functional_call(model: Any) -> Any:
    """Parameters are replaced for one call, by tensors that are none."""
    weights = {name: 0.9 * value for name, value in model.model.encoder.named_parameters()}
    with torch.no_grad():
        states = torch.func.functional_call(model.model.encoder, weights, (mel_features(2, dtype=model.dtype),))[0]
    return generate(model, encoder_outputs=BaseModelOutput(last_hidden_state=states))


@case
def logits_that_are_no_numbers(model: Any) -> Any:
    """A broken checkpoint: the same tokens, and never a suppressed one where the original gives none."""
    with torch.no_grad():
        model.model.decoder.layer_norm.bias.fill_(float("nan"))
    ids = model.generate(mel_features(2, dtype=model.dtype), max_new_tokens=6, suppress_tokens=[0, 1, 2, 5])
    return ids, generate(model, num_beams=2), generate(model, min_new_tokens=6)


@case
def logits_that_are_infinite(model: Any) -> Any:
    bias = torch.zeros(len(model.proj_out.weight), dtype=model.dtype)
    bias[30:50] = torch.inf
    model.proj_out.bias = nn.Parameter(bias)
    return model.generate(mel_features(2, dtype=model.dtype), max_new_tokens=6, suppress_tokens=[*range(40)])


@case
def encoder_states_of_fewer_frames(model: Any) -> Any:
    """Shorter audio through an encoder that allows it."""
    states = torch.randn(2, SOURCE_POSITIONS - 20, model.config.d_model, generator=torch.Generator().manual_seed(2))
    return generate(model, encoder_outputs=BaseModelOutput(last_hidden_state=states.to(model.dtype)))


@case_of_one_width
def the_saved_configuration(model: Any) -> Any:
    """A folder that ours wrote must load where nobody has heard of us."""
    generate(model)
    return saved_config(model)


@case_of_one_width
def the_saved_configuration_of_a_subclass(model: Any) -> Any:
    mine = type("Mine", (type(model),), {})(model.config)
    return saved_config(mine)["architectures"]


@case_of_one_width
def layers_that_must_stay_whole(model: Any) -> Any:
    """Device maps and FSDP's policies find them by name."""
    return [any(type(module).__name__ == name for module in model.modules()) for name in model._no_split_modules]


def ids_and_features(model: Any) -> dict[str, Tensor]:
    return {
        "input_features": mel_features(2, dtype=model.dtype),
        "decoder_input_ids": torch.tensor([[START, 1]] * 2),
    }


@case_of_one_width
def compiling_in_one_graph(model: Any) -> Any:
    generate(model)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        logits = [compiled(**ids_and_features(model)).logits for _ in range(2)]
    gradients(compiled)
    return logits, counter.frame_count


@case_of_one_width
def exporting_the_encoder_strictly(model: Any) -> Any:
    features = mel_features(2, dtype=model.dtype)
    with torch.no_grad():
        return torch.export.export(model.model.encoder, (features,), strict=True).module()(features)[0]


@case_of_one_width
def tracing_the_encoder(model: Any) -> Any:
    model.config.return_dict = False
    features = mel_features(2, dtype=model.dtype)
    with torch.no_grad():
        return torch.jit.trace(model.model.encoder, (features,), strict=False)(features)[0]


@case_of_one_width
def shapes_by_fake_tensors(model: Any) -> Any:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {name: mode.from_tensor(value) for name, value in ids_and_features(model).items()}
        return model.eval()(**fake).logits.shape


@case_of_one_width
def shapes_on_the_meta_device(model: Any) -> Any:
    inputs = {name: value.to("meta") for name, value in ids_and_features(model).items()}
    return model.to("meta")(**inputs).logits.shape


@case_of_one_width
def derivatives_taken_forwards(model: Any) -> Any:
    """They go on where gradients are off. With eager attention, for PyTorch's fused kernel has none."""
    model.set_attn_implementation("eager")
    features = mel_features(2, dtype=model.dtype)
    with torch.no_grad():
        return torch.func.jvp(lambda x: model.model.encoder(x)[0], (features,), (features,))


@case_of_one_width
def derivatives_of_dual_numbers(model: Any) -> Any:
    model.set_attn_implementation("eager")
    forward_ad, features = torch.autograd.forward_ad, mel_features(2, dtype=model.dtype)
    with torch.no_grad(), forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(model.model.encoder(forward_ad.make_dual(features, features))[0]))


def rows() -> list[Any]:
    found = []
    for name in CASES:
        for width in [64] if name in ONE_WIDTH else WIDTHS:
            for dtype in (torch.float32, torch.bfloat16):
                marks = [pytest.mark.slow] if width > 384 else []
                kind = str(dtype).removeprefix("torch.")
                found.append(pytest.param(name, width, dtype, id=f"{name}-{width}-{kind}", marks=marks))
    return found


@pytest.mark.filterwarnings("ignore")  # the original warns as well
@pytest.mark.parametrize(("name", "width", "dtype"), rows())
def test_nobody_can_tell(name: str, width: int, dtype: torch.dtype) -> None:
    expected, actual = (CASES[name](copy.deepcopy(model)) for model in _made(width, dtype))
    assert_same(actual, expected, EXACT)
