import wave
from pathlib import Path

import pytest

from perf_tests.common.errors import BadInputError
from perf_tests.matrix import components
from perf_tests.matrix.cases import PRESETS, SETTINGS
from perf_tests.matrix.plan import Aim, Options, Probes, cpu_computes, make_plan

CPU = Probes(lambda: False, lambda: 0, lambda dtype: True)
GPU = Probes(lambda: True, lambda: 2, lambda dtype: True)
DRIVER_ONLY = Probes(lambda: True, lambda: 0, lambda dtype: True)
WEAK_CPU = Probes(lambda: False, lambda: 0, lambda dtype: dtype == "float32")


def test_defaults_on_a_cpu() -> None:
    plan = make_plan(Options(), CPU)
    assert (plan.preset, plan.device, plan.dtype, plan.weights) == ("quick", "cpu", "float32", "random")
    assert plan.preset_reason == "the default on a CPU"
    assert len(plan.cases) == 12
    assert plan.rounds_of("single") < SETTINGS["single"].rounds


def test_defaults_on_a_gpu() -> None:
    plan = make_plan(Options(), GPU)
    assert (plan.preset, plan.device, plan.dtype) == ("paper", "cuda", "float16")
    assert plan.preset_reason == "the default on a GPU"
    assert len(plan.cases) == 78
    assert [plan.rounds_of(setting) for setting in ("single", "batched")] == [100, 10]


def test_a_driver_without_a_torch_for_it_means_the_cpu() -> None:
    plan = make_plan(Options(), DRIVER_ONLY)
    assert plan.device == "cpu"
    assert "torch sees no GPU" in plan.preset_reason


def test_what_is_asked_for_wins() -> None:
    options = Options(preset="full", device="cuda:1", dtype="bfloat16", rounds="7", checkpoints=("large-v3",))
    plan = make_plan(options, GPU)
    assert (plan.preset, plan.preset_reason, plan.device, plan.dtype) == ("full", "asked for", "cuda:1", "bfloat16")
    assert plan.rounds_of("single") == plan.rounds_of("batched") == 7
    assert {case.checkpoint for case in plan.cases} == {"large-v3"}


def test_rounds_are_chosen_for_a_precision_unless_they_are_fixed() -> None:
    quick, preset = make_plan(Options(), CPU), PRESETS["quick"]
    assert quick.rounds_of("single") < preset.least_pairs
    assert quick.aim_of("single") == Aim(preset.least_pairs, 0.015, preset.case_budget_seconds, preset.enough_pairs)
    typed = make_plan(Options(precision="0.5%", case_budget="7"), GPU)
    assert typed.aim_of("batched") == Aim(10, 0.005, 7)
    assert make_plan(Options(rounds="3"), CPU).aim_of("single") is None
    by_setting = make_plan(Options(preset="paper", rounds="single=12,batched=2"), CPU)
    assert [by_setting.rounds_of(setting) for setting in ("single", "batched")] == [12, 2]
    one = make_plan(Options(preset="paper", rounds="batched=2"), CPU)
    assert (one.rounds_of("single"), one.aim_of("batched")) == (SETTINGS["single"].rounds, None)
    assert one.aim_of("single") is not None


def test_pretrained_weights_run_the_full_depth_rows() -> None:
    plan = make_plan(Options(weights="pretrained"), CPU)
    assert {case.decoder_layers for case in plan.cases if case.checkpoint == "tiny.en"} == {4}


@pytest.mark.parametrize(
    ("options", "probes", "words"),
    [
        (Options(preset="swift"), CPU, ["--perf-preset", "'swift'", "quick, paper, full"]),
        (Options(checkpoints=("huge",)), CPU, ["--perf-checkpoint", "'huge'", "tiny.en"]),
        (Options(dtype="int8"), CPU, ["--perf-dtype", "'int8'", "float32"]),
        (Options(decoder_layers=("three",)), CPU, ["--perf-decoder-layers", "'three'", "whole number"]),
        (Options(decoder_layers=("99",)), CPU, ["--perf-decoder-layers", "99 is too many"]),
        (Options(decoder_layers=("0",)), CPU, ["--perf-decoder-layers", "0 is too few"]),
        (Options(rounds="-3"), CPU, ["--perf-rounds", "-3 is too few"]),
        (Options(preset="paper", rounds="single=10,batched=0"), CPU, ["--perf-rounds batched", "0 is too few"]),
        (Options(preset="paper", rounds="single=10,2"), CPU, ["--perf-rounds", "'2' names no setting"]),
        (Options(preset="paper", rounds="single=1,single=2"), CPU, ["--perf-rounds", "single is given twice"]),
        (Options(preset="paper", rounds="single=1,"), CPU, ["--perf-rounds", "'' names no setting"]),
        (Options(preset="paper", rounds="quick=1"), CPU, ["'quick' is selected", "there are single, batched"]),
        (
            Options(preset="paper", settings=("single",), rounds="batched=1"),
            CPU,
            ["no case of 'batched' is selected", "there are single"],
        ),
        (Options(rounds="5", precision="1"), CPU, ["--perf-precision", "--perf-rounds fixes"]),
        (Options(rounds="5", case_budget="9"), CPU, ["--perf-case-budget", "--perf-rounds fixes"]),
        (Options(precision="0"), CPU, ["--perf-precision", "'0'", "above 0"]),
        (Options(precision="little"), CPU, ["--perf-precision", "'little'", "percentage"]),
        (Options(case_budget="inf"), CPU, ["--perf-case-budget", "'inf'", "seconds"]),
        (Options(rounds="0"), CPU, ["--perf-rounds", "0 is too few"]),
        (Options(rounds="many"), CPU, ["--perf-rounds", "whole number"]),
        (Options(weights="trained"), CPU, ["--perf-weights", "random, pretrained"]),
        (Options(device="cuda"), CPU, ["--perf-device cuda", "no NVIDIA GPU", "--perf-device cpu"]),
        (Options(device="cuda"), DRIVER_ONLY, ["torch sees no GPU", "CUDA build"]),
        (Options(device="cuda:2"), GPU, ["cuda:2", "2 GPU(s)"]),
        (Options(device="cuda:x"), GPU, ["'cuda:x'", "cuda:N"]),
        (Options(device="cuda:"), GPU, ["'cuda:'", "cuda:N"]),
        (Options(device="tpu"), CPU, ["'tpu'", "cpu, cuda"]),
        (Options(dtype="float16"), WEAK_CPU, ["--perf-dtype", "float16", "float32"]),
        (Options(dataset="./nowhere"), CPU, ["--perf-dataset ./nowhere", "no such folder"]),
        (Options(dataset="a/b/c"), CPU, ["no such folder"]),
        (Options(dataset="nowhere"), CPU, ["no such folder"]),
        (Options(dataset=""), CPU, ["--perf-dataset", "empty"]),
    ],
)
def test_bad_input_is_one_clear_line(options: Options, probes: Probes, words: list[str]) -> None:
    with pytest.raises(BadInputError) as error:
        make_plan(options, probes)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_folder_without_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to hear")
    with pytest.raises(BadInputError, match="holds no audio"):
        make_plan(Options(dataset=str(tmp_path)), CPU)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(b"")
    with pytest.raises(BadInputError, match="not a folder"):
        make_plan(Options(dataset=str(path)), CPU)


def test_datasets_that_may_exist_are_left_to_the_reader(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "clip.wav"), "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(16_000)
        clip.writeframes(bytes(2))
    for dataset in (str(tmp_path), "owner/name", "synthetic"):
        assert make_plan(Options(dataset=dataset), CPU).dataset == dataset


def test_every_cpu_computes_in_float32() -> None:
    assert cpu_computes("float32")
    assert not cpu_computes("int8")


def test_no_probe_is_asked_without_need() -> None:
    def refuse(*args: object) -> bool:
        raise AssertionError("asked without need")

    make_plan(Options(device="cpu", dtype="float32"), Probes(refuse, refuse, refuse))
    make_plan(Options(), Probes(lambda: False, refuse, refuse))


def test_components_have_fewer_rounds_in_the_quick_preset() -> None:
    plan = make_plan(Options(components=True), CPU)
    assert {case.checkpoint for case in plan.cases} == {"tiny.en"}
    assert plan.rounds_of("cache_64") < components.WORKS["cache_64"].rounds
    assert make_plan(Options(components=True, rounds="3"), CPU).rounds_of("cache_64") == 3


def test_accuracy_means_pretrained_weights() -> None:
    plan = make_plan(Options(accuracy=True), CPU)
    assert plan.weights == "pretrained"
    assert {case.setting for case in plan.cases} == {"transcribe"}


def test_implementations_that_are_not_installed_run_only_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def implementations(**options: object) -> set[str]:
        plan = make_plan(Options(components=True, **options), GPU)
        return {case.implementation for case in plan.cases}

    monkeypatch.setattr(components, "find_spec", lambda name: None)
    assert implementations() == {"original", "eager", "flash"}
    assert implementations(implementations=("flash_attention_3",)) == {"flash_attention_3"}
    assert "not installed" in str(components.why_unavailable("flash_attention_3", "cuda", "float16"))
    monkeypatch.setattr(components, "find_spec", lambda name: name)
    # FlashAttention 4 brings a module `flash_attn` too, and is another package.
    assert "flash-attn, which is not installed" in str(
        components.why_unavailable("flash_attention_2", "cuda", "float16")
    )
    monkeypatch.setattr(components.metadata, "distribution", lambda name: name)
    assert implementations() == {*components.COMPONENT_IMPLEMENTATIONS}
    assert implementations(dtype="float32") == {"original", "eager", "flash"}
    assert "CPU" in str(components.why_unavailable("flash_attention_2", "cpu", "float16"))
