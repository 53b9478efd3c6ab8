"""Whom the compiled step serves: what it refuses, what `generate` says of it, and how PyTorch's tools see it."""

import gc
import logging
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from whisper_flash_attention import cpu_library, cpu_step
from whisper_flash_attention.cpu_library import SWITCH
from whisper_flash_attention.cpu_step import CompiledStep
from whisper_flash_attention.decoder import Decoder
from whisper_flash_attention.kv_cache import CrossBuffer, WhisperKVCache

from .compare import assert_half_tokens_agree, assert_same
from .step_cases import CPU, Case, Plan, assert_near, cross_of, make_case, read_plainly
from .test_padded_prompts import PROMPTS
from .tiny import START, Pair, make_pair, mel_features

ROOT = Path(__file__).parents[2]
SERVES = pytest.mark.skipif(cpu_library.why_not() is not None, reason=str(cpu_library.why_not()))
PLAN = Plan(sequences=2, fresh=3, room=3)
FORCED = {"min_new_tokens": 20, "max_new_tokens": 20, "force_unique_generate_call": True}
SWITCHED_OFF = cpu_library.why_not() == f"{SWITCH} is off"


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


# ---- The library ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(SWITCHED_OFF, reason="it is switched off")
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="it cannot be built here")
def test_it_serves_where_it_can_be_built() -> None:
    assert not cpu_library.why_not()


@SERVES
@pytest.mark.parametrize("value", ["off", "OFF", "0", "false", "no"])
def test_a_switch_leaves_it_unused(value: str, monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    monkeypatch.setenv(SWITCH, value)
    assert cpu_library.why_not() == f"{SWITCH} is off"
    outputs = [model.generate(mel_features(2), **FORCED) for model in pair]
    assert_same(outputs[1], outputs[0])
    assert pair.flash.attention_backend["step"] == f"eager: {SWITCH} is off"


@SERVES
@pytest.mark.parametrize("value", ["", "on", "1"])
def test_other_values_of_the_switch_leave_it_on(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, value)
    assert cpu_library.why_not() is None


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the package looks for the library."""
    build = cpu_library._build_script()
    build.LIBRARY = tmp_path / "_cpu_library.so"
    monkeypatch.setattr(cpu_library, "_build_script", lambda: build)
    monkeypatch.setattr(sys, "platform", "linux")
    return build.LIBRARY


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "it was not built"), ("old", "it was built from other sources")]
)
def test_a_library_that_is_missing_or_old_is_named_with_the_command(
    content: str | None, problem: str, library: Path
) -> None:
    if content is not None:
        library.write_text(content)
    reason = cpu_library._find()
    assert isinstance(reason, str)
    said, command = reason.split("; with a C++ compiler, run: ")
    interpreter, script = command.split(" ")
    assert (said, interpreter, Path(script).name) == (problem, sys.executable, "build.py")
    assert Path(script).is_file()


def test_a_library_that_does_not_load_is_named(library: Path) -> None:
    library.write_text(f"whisper_flash_attention sources {cpu_library._build_script().source_hash()}")
    reason = cpu_library._find()
    assert isinstance(reason, str)
    assert reason.startswith(f"it cannot be loaded: {library}")


def test_other_systems_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cpu_library._find() == "it is there for Linux alone"


def test_without_a_library_the_plain_step_serves_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, pair: Pair
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(cpu_library, "_find", lambda: "it was forgotten")
    cpu_library._load.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                outputs = [model.generate(mel_features(2), **FORCED) for model in pair]
        assert cpu_library.why_not() == "it was forgotten"
    finally:
        cpu_library._load.cache_clear()
    assert_same(outputs[1], outputs[0])
    assert pair.flash.attention_backend["step"] == "eager: it was forgotten"
    assert caplog.text.count("it was forgotten") == 1


OPENMP = """
    from pathlib import Path
    from tests.model.step_cases import Plan, make_case
    import torch
    with torch.no_grad():
        make_case(Plan()).bind()(Plan().tokens(), 0)
    names = {Path(line.split()[-1]).name for line in Path("/proc/self/maps").read_text().splitlines()}
    print(sorted(name for name in names if name.startswith(("libgomp", "libomp", "libiomp"))))
"""


@SERVES
def test_one_pool_of_threads_serves_pytorch_and_the_step() -> None:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(OPENMP)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split(",")) == 1
    assert "libgomp" in done.stdout


# ---- What it refuses ------------------------------------------------------------------------------------------------


class Tagged(Tensor):
    """A subclass, which may compute anything."""


def with_fc1(change: Callable[[Tensor], Tensor]) -> Callable[[Case], Case]:
    """Change one of the weights."""

    def changed(case: Case) -> Case:
        (layer,) = case.weights.layers
        layer = layer._replace(fc1=layer.fc1._replace(weight=change(layer.fc1.weight)))
        return Case(case.weights._replace(layers=(layer,)), case.cache)

    return changed


def with_bias(change: Callable[[Tensor], Tensor]) -> Callable[[Case], Case]:
    def changed(case: Case) -> Case:
        assert case.weights.norm.bias is not None
        norm = case.weights.norm._replace(bias=change(case.weights.norm.bias))
        return Case(case.weights._replace(norm=norm), case.cache)

    return changed


def without_stored_cross(case: Case) -> Case:
    return Case(case.weights, WhisperKVCache(case.cache.shape, torch.float32, CPU, None))


def with_fake_cache(case: Case) -> Case:
    shape = case.cache.shape
    with FakeTensorMode():
        cross_buffer = CrossBuffer.empty(shape, torch.float32, CPU)
        return Case(case.weights, WhisperKVCache(shape, torch.float32, CPU, cross_buffer))


# The plain step computes with these.
NOT_IN_ROWS: dict[str, Callable[[Case], Case]] = {
    "a weight by columns": with_fc1(lambda weight: weight.t().contiguous().t()),
    "a weight with gaps": with_fc1(lambda weight: torch.cat([weight, weight], dim=1)[:, : weight.shape[1]]),
    "a weight to be negated": with_fc1(lambda weight: torch._neg_view(-weight)),
    "a subclass": with_fc1(lambda weight: weight.as_subclass(Tagged)),
    "a bias with gaps": with_bias(lambda bias: bias.repeat_interleave(2)[::2]),
    "float64": lambda case: case.to(torch.float64),
}
REFUSED: dict[str, Callable[[Case], Case]] = {
    **NOT_IN_ROWS,
    "a weight of another dtype": with_fc1(Tensor.half),
    "a weight of another shape": with_fc1(lambda weight: weight[:, 1:].contiguous()),
    "a bias of another shape": with_bias(lambda bias: bias[None]),
    "a bias of another dtype": with_bias(Tensor.bfloat16),
    "a weight without numbers": with_fc1(lambda weight: weight.to("meta")),
    "a fake weight": with_fc1(FakeTensorMode().from_tensor),
    "a sparse weight": with_fc1(Tensor.to_sparse),
    "a weight of zeros that are nowhere": with_fc1(lambda weight: torch._efficientzerotensor(weight.shape)),
    "a fake cache": with_fake_cache,
    "no stored keys": without_stored_cross,
    "no layers": lambda case: Case(case.weights._replace(layers=()), case.cache),
}


@SERVES
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_lie_in_the_memory_in_rows_is_refused(name: str) -> None:
    case = make_case(PLAN)
    assert CompiledStep.bind(*case) is not None
    assert CompiledStep.bind(*REFUSED[name](case)) is None


@SERVES
@pytest.mark.parametrize("name", NOT_IN_ROWS)
def test_what_is_refused_is_computed_plainly(name: str) -> None:
    case = make_case(PLAN)
    decoder = Decoder(*NOT_IN_ROWS[name](case), None)
    assert decoder.compiled is None
    logits = decoder.read_prompt(PLAN.tokens())
    assert_near(logits, read_plainly(case, decoder.cache.self_buffer, PLAN.tokens(), 0))


@SERVES
def test_gradients_autocast_and_transforms_are_left_to_pytorch() -> None:
    case = make_case(PLAN)
    with torch.enable_grad():
        assert CompiledStep.bind(*case) is None
    with torch.autocast("cpu"):
        assert CompiledStep.bind(*case) is None
    bound = []
    torch.func.vmap(lambda x: (bound.append(CompiledStep.bind(*case)), x)[1])(torch.zeros(2))
    assert bound == [None]
    assert CompiledStep.bind(*case) is not None


@SERVES
@pytest.mark.parametrize("change", ["shared cross-attention", "float64", "a parameter by columns"])
def test_calls_that_it_does_not_take_are_the_originals(change: str, pair: Pair) -> None:
    for model in pair:
        if change == "float64":
            model.double()
        elif change == "a parameter by columns":
            parameter = model.get_parameter("model.decoder.layers.1.fc1.weight")
            parameter.data = parameter.data.t().contiguous().t()
    if change == "shared cross-attention":
        pair.flash.cross_attention = "shared"
    outputs = [model.generate(mel_features(2, dtype=model.dtype), **FORCED) for model in pair]
    assert_same(outputs[1], outputs[0])
    assert not pair.flash.attention_backend.get("step", "").startswith("compiled")


# ---- In generate ----------------------------------------------------------------------------------------------------

# As batches of prompts have it: padding in front alone.
FRONT = torch.tensor([[0, 0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]])
IN_FRONT = PROMPTS | {"decoder_attention_mask": FRONT}
CALLS: dict[str, dict[str, Any]] = {
    "greedy": FORCED,
    "beams": {**FORCED, "num_beams": 3},
    "padded": {**FORCED, **IN_FRONT},
    "padded beams": {**FORCED, **IN_FRONT, "num_beams": 2},
    "timestamps": {"return_timestamps": True, "max_new_tokens": 30},
    "scores": {**FORCED, "return_dict_in_generate": True, "output_logits": True},
}


@SERVES
@pytest.mark.parametrize("name", CALLS)
def test_generate_is_served(name: str, pair: Pair) -> None:
    outputs = [model.generate(mel_features(3), **CALLS[name]) for model in pair]
    assert_same(outputs[1], outputs[0])
    assert pair.flash.attention_backend["step"] == f"compiled for {cpu_library.LEVELS[cpu_library.level()]}"


@SERVES
def test_padding_in_the_middle_is_left_to_the_plain_step(pair: Pair) -> None:
    outputs = [model.generate(mel_features(3), **FORCED, **PROMPTS) for model in pair]
    assert_same(outputs[1], outputs[0])
    assert pair.flash.attention_backend["step"] == "eager"


@SERVES
def test_generate_is_served_in_half_precision(half: torch.dtype) -> None:
    pair, reference, features = make_pair(half), make_pair().original, mel_features(3, dtype=half)
    flash, original = (model.generate(features, **FORCED) for model in (pair.flash, pair.original))
    assert_half_tokens_agree(flash, original, pair.original, reference, features, [START])
    assert pair.flash.attention_backend["step"].startswith("compiled")


@SERVES
@pytest.mark.parametrize("beams", [1, 2])
def test_a_call_that_was_broken_off_leaves_nothing_behind(beams: int, pair: Pair) -> None:
    def interrupt(input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] == 6:
            raise InterruptedError
        return scores

    with pytest.raises(InterruptedError):
        pair.flash.generate(mel_features(2, seed=1), logits_processor=[interrupt], num_beams=beams, **FORCED)
    outputs = [model.generate(mel_features(2), num_beams=beams, **FORCED) for model in pair]
    assert_same(outputs[1], outputs[0])
    assert pair.flash.attention_backend["step"].startswith("compiled")


@SERVES
def test_a_call_goes_on_while_another_thread_moves_the_model(pair: Pair) -> None:
    """With the parameters that it began with, to its end."""
    done = threading.Event()

    def move() -> None:
        while not done.is_set():
            pair.flash.half()
            pair.flash.float()

    threads: list[threading.Thread] = []

    def move_from_now_on(input_ids: Tensor, scores: Tensor) -> Tensor:
        if not threads:
            threads.append(threading.Thread(target=move))
            threads[0].start()
        return scores

    expected = pair.original.generate(mel_features(2), **FORCED)
    try:
        output = pair.flash.generate(mel_features(2), logits_processor=[move_from_now_on], **FORCED)
    finally:
        done.set()
        threads[0].join(60)
    assert_same(output, expected)
    assert pair.flash.attention_backend["step"].startswith("compiled")


@SERVES
def test_a_bound_step_is_freed_with_its_decoder() -> None:
    before = len(cpu_step._bound)
    decoder = Decoder(*make_case(PLAN), None)
    assert len(cpu_step._bound) == before + 1
    del decoder
    gc.collect()
    assert len(cpu_step._bound) == before


# ---- The operator ---------------------------------------------------------------------------------------------------


@SERVES
@pytest.mark.parametrize("kind", ["fake", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fake_tensors_get_its_shape_and_dtype(dtype: torch.dtype, kind: str) -> None:
    case = make_case(PLAN._replace(dtype=dtype))
    step, cache, tokens = case.bind(), case.cache.self_buffer, PLAN.tokens()
    mode = FakeTensorMode()
    change = mode.from_tensor if kind == "fake" else lambda tensor: tensor.to("meta")
    tensors = (change(tokens), None, None, *map(change, (cache, *cross_of(case))))
    before = cache.clone()
    with mode if kind == "fake" else torch.no_grad():
        logits = cpu_step._operator(*tensors, step.vocabulary_size, step.feed_forward, 0, 1, step._key)
    assert torch.equal(cache, before)
    real = step(tokens, 0)
    assert (logits.shape, logits.dtype) == (real.shape, real.dtype)


@SERVES
def test_what_the_operator_says_of_itself_holds() -> None:
    case = make_case(PLAN)
    step, tensors = case.bind(), (PLAN.tokens(), None, None, case.cache.self_buffer, *cross_of(case))
    arguments = (*tensors, step.vocabulary_size, step.feed_forward, 0, 1, step._key)
    torch.library.opcheck(cpu_step._operator, arguments, test_utils=("test_schema", "test_faketensor"))


@SERVES
@pytest.mark.parametrize("beams", [1, 3])
def test_its_operations_are_counted_as_those_of_the_plain_step(beams: int) -> None:
    # So long that the plain step attends by products, which the counter knows.
    plan = Plan(sequences=6, beams=beams, start=30, layers=2)
    counts = []
    case = make_case(plan)
    for each in (case, case.to(torch.float64)):
        decoder = Decoder(*each, None)
        with FlopCounterMode(display=False) as counter:
            decoder.step(plan.tokens()[:, 0], plan.start + 1)
        counts.append(counter.get_total_flops())
        served = decoder.compiled is not None
        assert served == (each is case)
    assert counts[0] == counts[1] > 0
