"""Weights go in and out under the original's names, whatever was called before."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_model
from transformers import AutoModelForSpeechSeq2Seq, WhisperForConditionalGeneration

from whisper_flash_attention import WhisperFlashAttentionForConditionalGeneration

from .compare import EXACT, assert_same
from .tiny import Pair, make_pair, mel_features, tiny_config

TOKENS = 8

# What has gone before.
HISTORIES = {
    "new": lambda model: None,
    "generated": lambda model: model.generate(mel_features(2), max_new_tokens=TOKENS),
    "forward": lambda model: model(mel_features(1), decoder_input_ids=torch.tensor([[201, 5]])),
}


@pytest.fixture(params=list(HISTORIES))
def history(request: pytest.FixtureRequest):
    return HISTORIES[request.param]


def assert_same_state(actual: torch.nn.Module, expected: torch.nn.Module) -> None:
    assert_same(actual.state_dict(), expected.state_dict(), EXACT)


def assert_same_tokens(pair: Pair, batch: int = 2) -> None:
    features = mel_features(batch, dtype=pair.original.dtype)
    flash = pair.flash.generate(features, max_new_tokens=TOKENS)
    assert_same(flash, pair.original.generate(features, max_new_tokens=TOKENS))


def test_keys_are_the_originals(pair: Pair, history) -> None:
    history(pair.flash)
    assert list(pair.flash.state_dict()) == list(pair.original.state_dict())
    assert [name for name, _ in pair.flash.named_parameters()] == [name for name, _ in pair.original.named_parameters()]
    assert [name for name, _ in pair.flash.named_buffers()] == [name for name, _ in pair.original.named_buffers()]
    assert [name for name, _ in pair.flash.named_modules()] == [name for name, _ in pair.original.named_modules()]


def test_values_survive(pair: Pair, history) -> None:
    history(pair.flash)
    assert_same_state(pair.flash, pair.original)
    assert_same_tokens(pair)


def test_parameters_stay_the_same_objects(pair: Pair, history) -> None:
    """An optimizer made before generate must go on training the weights that are used after it."""
    before = dict(pair.flash.named_parameters())
    history(pair.flash)
    after = dict(pair.flash.named_parameters())
    assert all(before[name] is after[name] for name in before)


def test_loads_both_ways(history) -> None:
    first, second = make_pair(seed=1), make_pair(seed=2)
    history(first.flash)
    history(second.flash)
    second.original.load_state_dict(first.flash.state_dict(), strict=True)
    second.flash.load_state_dict(first.original.state_dict(), strict=True)
    assert_same_state(second.original, first.original)
    assert_same_state(second.flash, first.original)
    assert_same_tokens(second)


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_new_weights_take_effect(assign: bool, history) -> None:
    first, second = make_pair(seed=1), make_pair(seed=2)
    history(first.flash)
    first.flash.load_state_dict(second.original.state_dict(), strict=True, assign=assign)
    if assign:
        first.flash.tie_weights()
    assert_same_tokens(Pair(second.original, first.flash))


def test_saves_as_the_original(pair: Pair, history, tmp_path: Path) -> None:
    history(pair.flash)
    pair.flash.save_pretrained(tmp_path / "flash")
    pair.original.save_pretrained(tmp_path / "original")
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("flash", "original")]
    assert_same(*files, EXACT)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("flash", "original")]
    assert sizes[0] == sizes[1]
    generation_configs = [(tmp_path / name / "generation_config.json").read_text() for name in ("flash", "original")]
    assert generation_configs[0] == generation_configs[1]
    assert_same_tokens(pair)


@pytest.mark.parametrize("writer", ["original", "flash"])
@pytest.mark.parametrize(
    "reader",
    [
        WhisperForConditionalGeneration,
        WhisperFlashAttentionForConditionalGeneration,
        AutoModelForSpeechSeq2Seq,
    ],
    ids=lambda cls: cls.__name__,
)
def test_pretrained_round_trip(writer: str, reader: type, history, tmp_path: Path) -> None:
    pair = make_pair(multilingual=True)
    model = getattr(pair, writer)
    history(model)
    model.save_pretrained(tmp_path)
    loaded, info = reader.from_pretrained(tmp_path, output_loading_info=True)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[key], key
    assert loaded.generation_config.to_dict() == pair.original.generation_config.to_dict()
    assert_same_state(loaded, pair.original)
    features = mel_features(2)
    assert_same(
        loaded.generate(features, max_new_tokens=TOKENS),
        pair.original.generate(features, max_new_tokens=TOKENS),
    )


SAVERS = {
    "torch": lambda model, folder: torch.save(model.state_dict(), folder / "model.bin"),
    "safetensors": lambda model, folder: save_model(model, str(folder / "model.safetensors")),
    "accelerate": lambda model, folder: accelerate_save(model, folder),
}


def accelerate_save(model: torch.nn.Module, folder: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="saving through accelerate needs it")
    accelerate.Accelerator(cpu=True).save_model(model, str(folder))


@pytest.mark.parametrize("saver", list(SAVERS))
def test_other_ways_of_saving(saver: str, pair: Pair, history, tmp_path: Path) -> None:
    """Tools that look for shared storage take parts of one for copies of each other, and drop them."""
    history(pair.flash)
    contents = []
    for name, model in (("original", pair.original), ("flash", pair.flash)):
        (tmp_path / name).mkdir()
        SAVERS[saver](model, tmp_path / name)
        (file,) = (tmp_path / name).iterdir()
        contents.append(load_file(file) if file.suffix == ".safetensors" else torch.load(file))
    assert_same(contents[1], contents[0], EXACT)


def test_saved_config_names_no_private_kernel(pair: Pair, history, tmp_path: Path) -> None:
    """A folder that ours wrote must load in an environment that has never heard of us."""
    history(pair.flash)
    pair.flash.save_pretrained(tmp_path / "flash")
    pair.original.save_pretrained(tmp_path / "original")
    flash, original = (
        type(pair.original.config).from_pretrained(tmp_path / name).to_dict() for name in ("flash", "original")
    )
    assert flash == original


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_from_pretrained_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    make_pair().original.save_pretrained(tmp_path)
    loaded = Pair(
        WhisperForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype),
        WhisperFlashAttentionForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype),
    )
    assert loaded.flash.dtype == dtype
    assert_same_state(loaded.flash, loaded.original)


def test_built_from_a_configuration() -> None:
    torch.manual_seed(3)
    original = WhisperForConditionalGeneration(tiny_config())
    torch.manual_seed(3)
    flash = WhisperFlashAttentionForConditionalGeneration(tiny_config())
    assert_same_state(flash, original)
    torch.manual_seed(3)
    assert_same_state(WhisperFlashAttentionForConditionalGeneration._from_config(tiny_config()), original)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementation_can_be_asked_for(implementation: str, pair: Pair) -> None:
    config = tiny_config()
    flash = WhisperFlashAttentionForConditionalGeneration._from_config(config, attn_implementation=implementation)
    flash.load_state_dict(pair.original.state_dict())
    flash.generation_config = pair.original.generation_config
    assert_same_tokens(Pair(pair.original, flash.eval()))


CONVERSIONS = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "to": lambda model: model.to(torch.bfloat16),
    "double": lambda model: model.double(),
    "each part": lambda model: [part.bfloat16() for part in (model.model.encoder, model.model.decoder, model.proj_out)],
}


@pytest.mark.parametrize("convert", list(CONVERSIONS))
def test_converted_after_generate(convert: str, history) -> None:
    pair = make_pair()
    history(pair.flash)
    for model in pair:
        CONVERSIONS[convert](model)
    assert_same_state(pair.flash, pair.original)
    features = mel_features(1, dtype=pair.flash.dtype)
    assert pair.flash.generate(features, max_new_tokens=TOKENS).shape[0] == 1
    for model in pair:
        model.float()
    assert_same_state(pair.flash, pair.original)
    assert_same_tokens(pair)


@pytest.mark.parametrize(
    "copier",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: _through_torch_save(model),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_are_independent(copier, history) -> None:
    pair = make_pair()
    history(pair.flash)
    copied = copier(pair.flash)
    assert type(copied) is type(pair.flash)
    assert_same_state(copied, pair.original)
    assert copied.proj_out.weight is copied.model.decoder.embed_tokens.weight
    assert_same_tokens(Pair(pair.original, copied))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    assert_same_state(pair.flash, pair.original)
    assert_same_tokens(pair)


def _through_torch_save(model: torch.nn.Module) -> torch.nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_tied_weights_stay_tied(pair: Pair, history) -> None:
    history(pair.flash)
    assert pair.flash.proj_out.weight is pair.flash.model.decoder.embed_tokens.weight
    assert pair.flash.get_output_embeddings().weight is pair.flash.get_input_embeddings().weight


def test_no_two_parameters_overlap_for_the_reader(pair: Pair, history) -> None:
    """Scaling one parameter in place changes that parameter alone."""
    history(pair.flash)
    for name, parameter in pair.flash.named_parameters():
        others = {other: value.clone() for other, value in pair.flash.named_parameters() if other != name}
        with torch.no_grad():
            parameter.mul_(1.01)
        now = dict(pair.flash.named_parameters())
        assert all(torch.equal(now[other], value) for other, value in others.items()), name
    assert len(dict(pair.flash.named_parameters())) == len(dict(pair.original.named_parameters()))


def test_resized_vocabulary(pair: Pair, history) -> None:
    history(pair.flash)
    for model in pair:
        torch.manual_seed(5)
        model.resize_token_embeddings(model.config.vocab_size + 9, mean_resizing=False)
    assert pair.flash.proj_out.weight.shape == pair.original.proj_out.weight.shape
    assert_same_state(pair.flash, pair.original)
    assert_same_tokens(pair)


def test_modes(pair: Pair, history) -> None:
    history(pair.flash)
    assert not pair.flash.training
    assert pair.flash.train() is pair.flash
    assert all(module.training for module in pair.flash.modules())
    assert not any(module.training for module in pair.flash.eval().modules())
    assert_same_tokens(pair)
