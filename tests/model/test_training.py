"""Training: gradients with dropout and checkpointing, steps of an optimiser, and Transformers' trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from .compare import EXACT, assert_close, assert_half_close, assert_same
from .tiny import Pair, decoder_tokens, make_pair, mel_features

ALL_DROPOUT = {"dropout": 0.2, "attention_dropout": 0.3, "activation_dropout": 0.2}
LENGTH = 9
# Under its newer name where Transformers has that.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in Seq2SeqTrainingArguments.__dataclass_fields__
)


def gradients(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Gradients of every parameter for one batch of two."""
    model.zero_grad(set_to_none=True)
    model(mel_features(2, dtype=dtype), labels=decoder_tokens(2, LENGTH, seed=5)).loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.requires_grad}


def checkpointed(model: torch.nn.Module) -> torch.nn.Module:
    """`model` in training mode with gradient checkpointing, under its newer name where Transformers has that."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    return model.train()


@pytest.mark.parametrize("kind", [*ALL_DROPOUT, "all"])
def test_gradients_with_dropout_have_the_originals_mean_and_spread(kind: str) -> None:
    """Over many draws. Pooled over all numbers, differences of means are as large as chance makes them, no larger."""
    options = ALL_DROPOUT if kind == "all" else {kind: ALL_DROPOUT[kind]}
    draws = 60
    pair = make_pair(**options).train()
    watched = ("encoder.layers.0.self_attn.q_proj.weight", "decoder.layers.1.encoder_attn.v_proj.weight")
    samples: list[torch.Tensor] = []
    for model in pair:
        drawn = [gradients(model) for _ in range(draws)]
        samples.append(
            torch.stack([torch.cat([each[f"model.{name}"].flatten() for name in watched]) for each in drawn])
        )
    original, flash = samples
    variances = (original.var(0) + flash.var(0)) / draws
    deviations = (original.mean(0) - flash.mean(0)) / variances.sqrt()
    # One standard error where the distributions are the same; entries of a matrix move together, hence the room.
    assert deviations.pow(2).mean().sqrt() < 1.3
    spread = flash.std(0).mean() / original.std(0).mean()
    assert 0.85 < spread < 1.15


def test_checkpointing_repeats_the_dropout_that_it_recomputes() -> None:
    results = []
    for prepare in (torch.nn.Module.train, checkpointed):
        model = prepare(make_pair(**ALL_DROPOUT).flash)
        torch.manual_seed(3)
        results.append(gradients(model))
    for name, plain in results[0].items():
        assert_close(results[1][name], plain, 1e-5)


def test_checkpointed_gradients_in_half_precision(half: torch.dtype) -> None:
    reference = gradients(make_pair().original.train())
    pair = make_pair(half)
    original, flash = (gradients(checkpointed(model), half) for model in pair)
    for name in reference:
        assert_half_close(flash[name], original[name], reference[name])


def test_steps_of_an_optimiser_end_at_the_same_weights(pair: Pair) -> None:
    """Evaluation between steps too."""
    results = []
    for model in pair:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for step in range(4):
            model.train()
            gradients(model)
            optimizer.step()
            if step == 1:
                model.eval().generate(mel_features(1), max_new_tokens=4)
        results.append({name: value.detach().clone() for name, value in model.state_dict().items()})
    original, flash = results
    assert original.keys() == flash.keys()
    before = make_pair().original.state_dict()
    for name in original:
        assert_close(flash[name], original[name], 1e-3)
    assert any((original[name] - before[name]).abs().max() > 1e-2 for name in before)


class Examples(torch.utils.data.Dataset[dict[str, Any]]):
    """Eight audios with labels."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "input_features": mel_features(1, seed=index)[0],
            "labels": decoder_tokens(1, LENGTH, seed=index)[0],
        }


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_the_trainer_cannot_tell(checkpointing: bool, pair: Pair, tmp_path: Path) -> None:
    """Evaluated by `generate` first, trained with the default optimiser, evaluated, saved and loaded again."""
    outcomes: list[Any] = []
    for model in pair:
        folder = tmp_path / type(model).__name__
        predictions: list[torch.Tensor] = []

        def keep(evaluated: Any, predictions: list[torch.Tensor] = predictions) -> dict[str, float]:
            predictions.append(torch.tensor(evaluated.predictions))
            return {}

        arguments = Seq2SeqTrainingArguments(
            output_dir=str(folder),
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=5e-3,
            logging_steps=1,
            eval_on_start=True,
            eval_strategy="steps",
            eval_steps=3,
            predict_with_generate=True,
            generation_max_length=8,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=7,
            **{CHECKPOINTING: checkpointing},
        )
        trainer = Seq2SeqTrainer(
            model=model, args=arguments, train_dataset=Examples(), eval_dataset=Examples(), compute_metrics=keep
        )
        trainer.train()
        assert trainer.optimizer.optimizer.defaults["fused"]
        trainer.save_model()
        log = trainer.state.log_history
        trained = [(entry["loss"], entry["grad_norm"]) for entry in log if "loss" in entry]
        evaluated = torch.tensor([entry["eval_loss"] for entry in log if "eval_loss" in entry])
        loaded = [kind.from_pretrained(folder).eval() for kind in map(type, pair)]
        tokens = [each.generate(mel_features(2), max_new_tokens=6) for each in loaded]
        outcomes.append((trained, predictions, tokens, dict(model.state_dict()), loaded[0].state_dict(), evaluated))
    (*original, original_losses), (*flash, flash_losses) = outcomes
    assert len(original[0]) == 3
    assert len(original[1]) == 2
    assert_same(flash, original, EXACT)
    # Evaluated without gradients, where other kernels serve.
    assert_close(flash_losses, original_losses)
