"""Whole runs of the suite, on a miniature of tiny.en, and what they leave behind."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import try_to_load_from_cache

from perf_tests.measure.yardstick import VERSION
from perf_tests.runs import schema
from perf_tests.runs.journal import NOT_RUN
from tests.running import ROOT, read_run, run, run_suite
from tests.whole_runs import validate_run

SMALL = ("--perf-checkpoint", "tiny.en", "--perf-decoder-layers", "2", "--perf-device", "cpu")
CASES = [f"test_generate[tiny.en-2-single-{name}]" for name in ("original", "eager", "flash")]
EXACT = ("peak_memory_allocated_bytes", "model_memory_bytes", "aten_op_count", "flop_count", "case_definition")


def storage(folder: Path) -> str:
    return f"--benchmark-storage=file://{folder}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two runs of the same cell are saved; `output.txt` is what the second one printed."""
    folder = tmp_path_factory.mktemp("runs")
    for _ in range(2):
        arguments = ("--perf-rounds", "3", "--benchmark-autosave", storage(folder))
        result = run_suite(*SMALL, *arguments, plugins=("small_checkpoints",))
        assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output.txt").write_text(result.stdout + result.stderr)
    return folder


@pytest.fixture(scope="module")
def saved(folder: Path) -> dict[str, Any]:
    """The second run."""
    return read_run(max(folder.rglob("*.json")))


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    """What the second run printed."""
    return (folder / "output.txt").read_text()


def test_the_run_has_every_key(saved: dict[str, Any]) -> None:
    assert validate_run(saved) == []
    for bench in saved["benchmarks"]:
        assert {*bench["extra_info"]} == {field.name for field in schema.EXTRA_INFO}


def test_every_selected_case_is_in_the_run(saved: dict[str, Any]) -> None:
    assert saved["perf_cases"] == [{"id": name, "outcome": "passed", "reason": None, "session": 0} for name in CASES]
    (session,) = saved["perf_sessions"]
    assert (session["cases"], session["node"]) == (len(CASES), saved["machine_info"]["node"])
    assert [bench["name"] for bench in saved["benchmarks"]] == CASES


def test_parameters_and_group(saved: dict[str, Any]) -> None:
    bench = saved["benchmarks"][2]
    assert bench["params"] == {
        "checkpoint": "tiny.en",
        "decoder_layers": 2,
        "setting": "single",
        "implementation": "flash",
    }
    assert {bench["group"] for bench in saved["benchmarks"]} == {"tiny.en-2-single"}


def test_what_was_run_is_recorded(saved: dict[str, Any]) -> None:
    for bench in saved["benchmarks"]:
        info = bench["extra_info"]
        assert (info["device"], info["dtype"], info["weights"], info["audio"]) == (
            "cpu",
            "float32",
            "random",
            "synthetic",
        )
        assert (info["batch_size"], info["new_tokens"]) == (1, 25)
        assert info["parity"]["tokens_equal"]
        assert info["peak_memory_allocated_bytes"] > info["model_memory_bytes"] > 0
        assert info["aten_op_count"] > 0
        assert info["flop_count"] > 0
        assert len(bench["stats"]["data"]) == 3
        assert sum(info["op_counts"].values()) == info["aten_op_count"]
        assert info["op_shares"] is info["fraction_of_limit"] is info["limit_bytes"] is info["word_error_rate"] is None
    assert len({bench["extra_info"]["case_definition"] for bench in saved["benchmarks"]}) == 1


def test_flash_alone_has_a_control(saved: dict[str, Any]) -> None:
    original, eager, flash = (bench["extra_info"] for bench in saved["benchmarks"])
    assert original["control"] is original["speedup"] is eager["control"] is eager["speedup"] is None
    assert flash["control"]["implementation"] == "original"
    assert len(flash["control"]["rounds_seconds"]) == 3
    assert flash["speedup"]["low"] <= flash["speedup"]["median"] <= flash["speedup"]["high"]


def test_flash_alone_has_a_yardstick(saved: dict[str, Any]) -> None:
    original, eager, flash = (bench["extra_info"]["yardstick"] for bench in saved["benchmarks"])
    assert original is eager is None
    assert flash["version"] == VERSION
    for seconds in flash["rounds_seconds"].values():
        assert len(seconds) == 3
        assert min(seconds) > 0


def test_scores_that_are_kept_count_as_memory(saved: dict[str, Any]) -> None:
    original, eager, flash = (bench["extra_info"]["peak_memory_allocated_bytes"] for bench in saved["benchmarks"])
    assert eager > 2 * original
    assert eager > 2 * flash


def test_exact_figures_repeat_from_run_to_run(folder: Path) -> None:
    runs = [read_run(path) for path in sorted(folder.rglob("*.json"))]
    for first, second in zip(*(saved["benchmarks"] for saved in runs), strict=True):
        for key in EXACT:
            assert first["extra_info"][key] == second["extra_info"][key], (first["name"], key)


def test_exact_figures_depend_neither_on_the_order_nor_on_the_selection(saved: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    selection = ("--perf-implementation", "original", "--perf-implementation", "flash")
    arguments = ("--perf-rounds", "1", f"--benchmark-json={path}", storage(tmp_path))
    result = run_suite(*SMALL, *selection, *arguments, plugins=("small_checkpoints", "reversed_cases"))
    assert result.returncode == 0, result.stdout + result.stderr
    reversed_benchmarks = read_run(path)["benchmarks"]
    assert [bench["name"] for bench in reversed_benchmarks] == [CASES[2], CASES[0]]
    expected = {bench["name"]: bench["extra_info"] for bench in saved["benchmarks"]}
    for bench in reversed_benchmarks:
        for key in (*EXACT, "op_counts", "attention_backend", "parity"):
            assert bench["extra_info"][key] == expected[bench["name"]][key], (bench["name"], key)


def test_no_journal_is_left_of_a_whole_run(folder: Path) -> None:
    assert not list(folder.glob("journal_*"))


def test_the_header_says_what_runs(output: str) -> None:
    assert "perf: on cpu (" in output
    assert "in float32, random weights, synthetic audio" in output
    assert "perf: torch " in output
    assert "perf: preset quick (the default on a CPU): 3 cases, about " in output


def test_every_case_has_its_line_and_its_row(output: str) -> None:
    for index, name in enumerate(("original", "eager", "flash"), start=1):
        assert f"[{index}/3] tiny.en-2-single-{name}: " in output
    table = output.partition("= performance =")[2]
    for words in ("peak memory", "speed-up", "tokens", "error / allowed", "tiny.en-2-single-flash", " MB", "equal"):
        assert words in table
    assert "…" not in table


def test_rounds_control_and_yardstick_are_by_one_clock_and_it_is_named(tmp_path: Path) -> None:
    arguments = ("--perf-rounds", "2", "--benchmark-timer", "tests.plugins.ticking_clock.tick", "--benchmark-autosave")
    result = run_suite(*SMALL, "-k", "flash", *arguments, storage(tmp_path), plugins=("small_checkpoints",))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "timed by tick (--benchmark-timer), not in wall time: runs of the same clock alone compare" in result.stdout
    saved = read_run(tmp_path)
    assert validate_run(saved) == []
    (bench,) = saved["benchmarks"]
    info = bench["extra_info"]
    assert bench["options"]["timer"] == "tick"
    assert bench["stats"]["data"] == info["control"]["rounds_seconds"] == [1.0] * 2
    assert info["speedup"]["median"] == 1.0
    assert info["tokens_per_second"] is info["real_time_factor"] is None
    assert all(seconds == [1.0] * 2 for seconds in info["yardstick"]["rounds_seconds"].values())
    begin, *_ = info["device_state"]["rounds"]["begin_seconds"]
    assert not begin.is_integer()  # matched with the machine's state, which is read in wall time


@pytest.mark.slow
def test_a_real_cell(tmp_path: Path) -> None:
    arguments = ("-k", "not eager", "--perf-rounds", "1", "--benchmark-autosave")
    result = run_suite(*SMALL, *arguments, storage(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    saved = read_run(tmp_path)
    assert validate_run(saved) == []
    original, flash = (bench["extra_info"] for bench in saved["benchmarks"])
    assert original["parameter_count"] == flash["parameter_count"] == 33_028_608


@pytest.mark.slow
def test_real_weights_and_real_speech(tmp_path: Path) -> None:
    speech = os.environ.get("WHISPER_TEST_SPEECH")
    if speech is None:
        pytest.skip("WHISPER_TEST_SPEECH names no folder of real speech")
    if not isinstance(try_to_load_from_cache("openai/whisper-tiny.en", "model.safetensors"), str):
        pytest.skip("openai/whisper-tiny.en is not in the Hub's cache")
    arguments = ["--perf-weights", "pretrained", "--perf-dataset", speech, "-k", "tiny.en-4-single and not eager"]
    result = run_suite(*arguments, "--perf-rounds", "1", "--benchmark-autosave", storage(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    saved = read_run(tmp_path)
    assert validate_run(saved) == []
    assert len(saved["benchmarks"]) == 2
    for bench in saved["benchmarks"]:
        info = bench["extra_info"]
        assert (info["weights"], info["audio"]) == ("pretrained", speech)
        assert info["parity"]["tokens_equal"]


def test_pretrained_weights_that_cannot_be_had_fail_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    arguments = ["--perf-weights", "pretrained", "--perf-checkpoint", "base.en", "--perf-implementation", "original"]
    result = run_suite(*arguments, f"--benchmark-json={path}", storage(tmp_path), HF_HOME=str(tmp_path / "empty"))
    assert result.returncode == 1
    (entry,) = read_run(path)["perf_cases"]
    assert entry["outcome"] == "failed"
    assert "openai/whisper-base.en is neither in the Hub's cache nor to be had" in entry["reason"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--group-by", "group"],
        ["--group-by", "param:implementation"],
        ["--between", "min,median"],
        ["--csv", "{folder}/table.csv"],
        ["--histogram", "{folder}/histogram"],
    ],
    ids=lambda arguments: arguments[0] if arguments else "plain",
)
def test_pytest_benchmark_compares(arguments: list[str], folder: Path, tmp_path: Path) -> None:
    # Found, not imported: pygal's hook for imports makes others warn.
    if "--histogram" in arguments and not find_spec("pygal"):
        pytest.skip("pygal is not installed")
    command = [sys.executable, "-m", "pytest_benchmark", "--storage", f"file://{folder}", "compare"]
    result = run([*command, *(argument.format(folder=tmp_path) for argument in arguments)])
    assert result.returncode == 0, result.stderr
    assert "tiny.en-2-single-flash" in result.stdout
    assert "ERROR" not in result.stdout + result.stderr
    if any("{folder}" in argument for argument in arguments):
        assert list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("broken", "outcomes"),
    [
        (
            "nan,tokens",
            {
                "eager": ("failed", "ParityError: eager gives NaN or infinite logits"),
                "flash": ("failed", "ParityError: flash's greedy tokens differ"),
            },
        ),
        (
            "teardown,late",
            {
                "eager": ("failed", "in teardown: OSError: will not go"),
                "flash": ("failed", "ArithmeticError: too late"),
            },
        ),
        (
            "raise,skip,parity",
            {
                "original": ("skipped", "no such thing here"),
                "eager": ("failed", "MemoryError: this model is too large"),
                "flash": ("failed", "ParityError: flash's logits are off by 0.01"),
            },
        ),
    ],
)
def test_what_failed_is_accounted_for_and_is_no_measurement(
    broken: str, outcomes: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    arguments = ("--perf-rounds", "1", f"--benchmark-json={path}", "--benchmark-autosave", storage(tmp_path / "s"))
    plugins = ("small_checkpoints", "break_cases")
    result = run_suite(*SMALL, *arguments, plugins=plugins, PERF_BREAK=broken)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "INTERNALERROR" not in result.stdout + result.stderr
    for run_json in (read_run(path), read_run(tmp_path / "s")):
        assert validate_run(run_json) == []
        assert [entry["id"] for entry in run_json["perf_cases"]] == CASES
        for entry in run_json["perf_cases"]:
            implementation = entry["id"].rpartition("-")[2].removesuffix("]")
            outcome, reason = outcomes.get(implementation, ("passed", None))
            assert entry["outcome"] == outcome
            assert entry["reason"] == reason or entry["reason"].startswith(reason)
            assert "\n" not in (entry["reason"] or "")
        measured = {bench["params"]["implementation"] for bench in run_json["benchmarks"]}
        assert measured == {"original", "eager", "flash"} - set(outcomes)
    for implementation, (outcome, reason) in outcomes.items():
        assert f"tiny.en-2-single-{implementation}: {outcome.upper()}: {reason}" in result.stdout


def test_a_killed_run_leaves_what_was_measured_on_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "perf_tests", *SMALL, "-p", "tests.plugins.small_checkpoints"]
    command += ["--perf-rounds", "2", "--perf-implementation", "original", "--perf-implementation", "eager"]
    command += ["--benchmark-autosave", storage(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(lines := journal_lines(tmp_path)) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert '"selected"' in lines[0]
    assert '"outcome": "passed"' in lines[2]
    assert '"data": [' in lines[2]
    assert not list(tmp_path.rglob("*.json"))


def journal_lines(folder: Path) -> list[str]:
    return [line for path in folder.glob("journal_*.jsonl") for line in path.read_text().splitlines()]


def test_a_run_that_stops_early_says_what_was_not_run(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    arguments = ("--perf-rounds", "1", "-x", f"--benchmark-json={path}", storage(tmp_path))
    result = run_suite(*SMALL, *arguments, plugins=("small_checkpoints", "break_cases"), PERF_BREAK="raise")
    assert result.returncode != 0
    cases = read_run(path)["perf_cases"]
    assert [entry["outcome"] for entry in cases] == ["passed", "failed", "skipped"]
    assert cases[2]["reason"] == NOT_RUN
    assert "perf: cut short: 2 of 3 cases done" in result.stdout


def test_a_case_names_itself_while_it_runs_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from perf_tests.session import progress

    written: list[str] = []

    class Reporter:
        isatty = False

        def write(self, text: str, *, flush: bool) -> None:
            written.append(text)

        def flush(self) -> None:
            pass

    class Plugins:
        def get_plugin(self, name: str) -> object:
            return Reporter() if name == "terminalreporter" else None

    class Config:
        pluginmanager = Plugins()

    clock = iter([0.0, 0.0, 0.0, 0.0, 5.0, 5.0, 30.0, 31.0, 70.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    meter = progress.Progress(Config())  # type: ignore[arg-type]
    meter.start("tiny.en-4-single-flash")
    meter.phase("timing", 10)
    meter.rounds_done(5)
    meter.rounds_done(6)
    meter.rounds_done(8)
    assert written == [
        "    tiny.en-4-single-flash: timing, round 5 of 10, 25 s left\n",
        "    tiny.en-4-single-flash: timing, round 8 of 10, 16 s left\n",
    ]
