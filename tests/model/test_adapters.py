"""LoRA adapters through peft: they wrap the projections that decoding may have fused."""

from typing import Any

import pytest
import torch

from .compare import assert_close, assert_same
from .tiny import Pair, decoder_tokens, make_pair, mel_features

peft = pytest.importorskip("peft", reason="adapters need `peft`")

# peft still asks for it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RECORDED = {"return_dict_in_generate": True, "output_scores": True}
TARGETS = {
    "queries and values": ["q_proj", "v_proj"],
    "every linear layer": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "encoder alone": r"model\.encoder\.layers\.\d+\.self_attn\.(q|v)_proj",
    "cross-attention alone": r"model\.decoder\.layers\.\d+\.encoder_attn\.(q|k|v)_proj",
    "projection": ["q_proj", "proj_out"],
}


def add_adapter(model: torch.nn.Module, targets: Any, seed: int = 0, **options: Any) -> Any:
    """Wrap `model` with a LoRA adapter that has an effect, the same for each `seed`."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0, **options)
    adapted = peft.get_peft_model(model, config)
    randomise_adapter(adapted, seed)
    return adapted.eval()


@torch.no_grad()
def randomise_adapter(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def assert_pair_same(original: Any, flash: Any) -> torch.Tensor:
    """Forward and generate. Returns our tokens."""
    inputs = {"input_features": mel_features(2), "decoder_input_ids": decoder_tokens(2, 5)}
    with torch.no_grad():
        assert_close(flash(**inputs).logits, original(**inputs).logits, 1e-3)
    tokens = None
    for options in (RECORDED, {}):
        outputs = [
            model.generate(input_features=mel_features(2), max_new_tokens=8, **options) for model in (original, flash)
        ]
        assert_same(outputs[1], outputs[0], 1e-3)
        tokens = outputs[1]
    return tokens


@pytest.mark.parametrize("generated", [False, True], ids=["new", "generated"])
@pytest.mark.parametrize("targets", list(TARGETS))
def test_adapter(targets: str, generated: bool, pair: Pair) -> None:
    """On a fresh model, and on one whose weights generate has already rearranged."""
    plain = pair.flash.generate(mel_features(2), max_new_tokens=8) if generated else None
    original, flash = (add_adapter(model, TARGETS[targets]) for model in pair)
    tokens = assert_pair_same(original, flash)
    if plain is not None:
        assert plain.shape != tokens.shape or not torch.equal(plain, tokens)


def test_merged_and_unmerged(pair: Pair) -> None:
    original, flash = (add_adapter(model, TARGETS["every linear layer"]) for model in pair)
    adapted = assert_pair_same(original, flash)
    for model in (original, flash):
        model.merge_adapter()
    assert torch.equal(assert_pair_same(original, flash), adapted)
    for model in (original, flash):
        model.unmerge_adapter()
    assert torch.equal(assert_pair_same(original, flash), adapted)


def test_merged_for_good(pair: Pair) -> None:
    """The merged weights are plain ones again: keys and values as the original's."""
    original, flash = (add_adapter(model, TARGETS["every linear layer"]) for model in pair)
    adapted = assert_pair_same(original, flash)
    original, flash = original.merge_and_unload(), flash.merge_and_unload()
    assert type(flash) is type(pair.flash)
    assert_same(flash.state_dict(), original.state_dict(), 1e-6)
    assert torch.equal(assert_pair_same(original, flash), adapted)


def test_unloaded(pair: Pair) -> None:
    expected = pair.original.generate(mel_features(2), max_new_tokens=8)
    flash = add_adapter(pair.flash, TARGETS["queries and values"])
    flash.generate(input_features=mel_features(2), max_new_tokens=8)
    assert_same(flash.unload().generate(mel_features(2), max_new_tokens=8), expected)


def test_disabled(pair: Pair) -> None:
    expected = pair.original.generate(mel_features(2), max_new_tokens=8)
    original, flash = (add_adapter(model, TARGETS["queries and values"]) for model in pair)
    assert_pair_same(original, flash)
    with flash.disable_adapter():
        assert_same(flash.generate(input_features=mel_features(2), max_new_tokens=8), expected)
    assert_pair_same(original, flash)


def test_switched(pair: Pair) -> None:
    """Two adapters by turns."""
    models = [add_adapter(model, TARGETS["queries and values"]) for model in pair]
    for model in models:
        config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "fc1"], lora_dropout=0.0)
        model.add_adapter("second", config)
        randomise_adapter(model, seed=9)
    tokens = []
    for name in ("second", "default", "second"):
        for model in models:
            model.set_adapter(name)
        tokens.append(assert_pair_same(*models))
    assert torch.equal(tokens[0], tokens[2])
    assert tokens[0].shape != tokens[1].shape or not torch.equal(tokens[0], tokens[1])


def test_training_an_adapter() -> None:
    """Gradients reach the adapter alone; each step shows in the next generate."""
    losses: list[list[torch.Tensor]] = []
    adapters = []
    for model in make_pair():
        adapted = add_adapter(model, TARGETS["queries and values"])
        optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
        history = []
        for _ in range(3):
            adapted.eval().generate(input_features=mel_features(2), max_new_tokens=4)
            adapted.train()
            loss = adapted(input_features=mel_features(2), labels=decoder_tokens(2, 6)).loss
            optimizer.zero_grad()
            loss.backward()
            gradients = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
            assert gradients
            assert all("lora_" in name for name in gradients)
            optimizer.step()
            history.append(loss.detach())
        losses.append(history)
        adapters.append(adapted.eval())
    assert losses[0][-1] < losses[0][0]
    assert_close(torch.stack(losses[1]), torch.stack(losses[0]), 1e-3)
    assert_pair_same(*adapters)


def test_saved_adapter_loads_into_the_other_class(pair: Pair, tmp_path: Any) -> None:
    flash = add_adapter(pair.flash, TARGETS["queries and values"])
    flash.generate(input_features=mel_features(2), max_new_tokens=4)
    flash.save_pretrained(tmp_path)
    original = peft.PeftModel.from_pretrained(pair.original, tmp_path).eval()
    assert_pair_same(original, flash)
