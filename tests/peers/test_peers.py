"""The comparison with the peers: protocol, rows, conversions, command."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perf_tests import __main__ as dispatcher
from perf_tests.common.intervals import Estimate
from perf_tests.matrix.cases import CHECKPOINTS, Cell
from perf_tests.peers import command, contest, engines, rows
from perf_tests.peers.contest import Entry, list_entries, run_rounds
from perf_tests.peers.convert import ctranslate2_words, openai_dimensions, openai_name, openai_state_dict
from perf_tests.peers.engines import Engine, Job, PeerError, TransformersEngine, import_peer
from perf_tests.peers.rows import ROWS, Result, Row, Workshop, measure_row
from perf_tests.peers.tokens import find_difference, find_first_difference
from perf_tests.peers.worker import Timed, Worker
from perf_tests.subjects.audio import Speech, make_speech
from perf_tests.subjects.weights import Weights, make_config
from tests.running import ROOT, run

from .fake_engine import FakeEngine

JOB = Job(Cell("tiny.en", 4, "batched"), "random", 3, 1, Path("nowhere"))


def test_a_worker_runs_rounds_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    worker = Worker(FakeEngine())
    try:
        worker.load(JOB)
        timed = worker.time_round()
        transcript = worker.transcribe(2)
    finally:
        worker.close()
    assert timed.seconds > 0
    assert timed.tokens[0] == transcript[0] != os.getpid()
    assert timed.tokens[1:4] == [2, 0, 1]  # loading ran the first
    assert transcript[1:4] == [3, 2, 0]
    assert timed.tokens[4] == 0  # an idle worker must not spin


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("missing", r"^no-such-peer is not installed \(pip install .*peers"),
        ("raises", "^AttributeError: libnothing.so$"),
        ("dies", "^its process died$"),
    ],
)
def test_an_engine_that_cannot_load_has_a_reason(behaviour: str, reason: str) -> None:
    worker = Worker(FakeEngine(behaviour))
    try:
        with pytest.raises(PeerError, match=reason):
            worker.load(JOB)
    finally:
        worker.close()


def test_an_engine_that_fails_on_the_way_is_out() -> None:
    engine = FakeEngine("fails later")
    worker = Worker(engine)
    reasons: dict[Engine, str] = {}
    try:
        worker.load(JOB)
        timed = run_rounds({engine: worker}, 2, reasons)
    finally:
        worker.close()
    assert timed == {}
    assert reasons == {engine: "ValueError: no more"}


def test_a_peer_whose_import_fails_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_peer.py").write_text("raise OSError('libmissing.so: cannot open')")
    (tmp_path / "hollow_peer.py").write_text("import no_such_module_of_its_own")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PeerError, match=r"cannot be imported: OSError: libmissing\.so"):
        import_peer("broken_peer", "broken")
    with pytest.raises(PeerError, match=r"cannot be imported: ModuleNotFoundError: .*no_such_module_of_its_own"):
        import_peer("hollow_peer", "hollow")


def test_the_contest_goes_on_without_the_missing_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    control, ours, missing = (FakeEngine(name=name) for name in ("original", "flash", "absent"))
    monkeypatch.setattr(contest, "CONTROLS", {"float32": control})
    monkeypatch.setattr(contest, "CONTENDERS", (("float32", (ours, missing)),))
    timed = {control: [Timed(1.0, [1, 2]), Timed(2.0, [1, 2])], ours: [Timed(0.5, [1, 3]), Timed(1.0, [1, 3])]}
    entries = list_entries("tiny.en", timed, {missing: "not installed"}, {})
    assert [entry.engine.name for entry in entries] == ["original", "flash", "absent"]
    assert entries[1].ratio == Estimate(0.5, 0.5, 0.5)
    assert entries[1].first_difference == 1
    assert (entries[2].ratio, entries[2].reason) == (None, "not installed")
    no_control = list_entries("tiny.en", {ours: timed[ours]}, {control: "cannot compute", missing: "gone"}, {})
    assert [entry.reason for entry in no_control] == ["cannot compute", "cannot compute", "gone"]


def test_where_tokens_part() -> None:
    assert find_difference([1, 2], [1, 2]) is None
    assert find_difference([1, 2, 3], [1, 5, 3]) == 1
    assert find_difference([1, 2], [1, 2, 3]) == 2
    assert find_first_difference([[1, 2], [0, 9]], [[1, 3], [0, 9]]) == 1


def test_every_row_can_be_had_and_stands_once() -> None:
    assert len({*ROWS}) == len(ROWS)
    for row in ROWS:
        assert 1 <= row.decoder_layers <= CHECKPOINTS[row.checkpoint].decoder_layers
        assert row.batch_size <= command.CLIPS


@pytest.fixture
def workshop(mini_cell: Cell) -> Workshop:
    """A workshop; features are made of noise, not of sound."""
    return Workshop("random", Speech([np.zeros(16000, np.float32)], "silence"))


@pytest.mark.parametrize("part", ["generate", "decode"])
def test_a_row_is_measured(workshop: Workshop, part: str) -> None:
    result = measure_row(Row("mini.en", 2, 2, 7, 5, part), workshop, 2)
    assert result.reason is None
    assert result.ratio is not None
    assert result.original is not None
    assert result.flash is not None
    assert result.ratio.median > 0
    assert result.first_difference is None
    record = result.record()
    assert json.loads(json.dumps(record)) == record
    assert {name: len(seconds) for name, seconds in record["rounds"].items()} == {"original": 2, "flash": 2}


def test_decoding_alone_leaves_the_encoder_out(workshop: Workshop) -> None:
    with workshop.borrow("original", Row("mini.en", 2, 1, 3, 1, "decode")) as subject:
        calls: list[int] = []
        subject.model.model.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
        assert subject.generate().shape == (1, 3)
        assert calls == []


def test_a_row_that_cannot_be_had_says_why(mini_cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    speech = Speech([np.zeros(16000, np.float32)], "silence")
    shallow = Row("mini.en", 1, 1, 3, 1)
    result = measure_row(shallow, Workshop("pretrained", speech), 1)
    assert (result.ratio, result.reason) == (None, "pretrained weights have all layers")
    monkeypatch.setattr(rows, "cpu_computes", lambda dtype: False)
    result = measure_row(shallow._replace(dtype="bfloat16"), Workshop("random", speech), 1)
    assert result.reason is not None
    assert "bfloat16" in result.reason


def test_transformers_engines_agree_with_and_without_force(
    mini_cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "LONGEST", 6)
    job = Job(mini_cell, "random", 4, torch.get_num_threads(), tmp_path)
    np.save(job.features, np.random.default_rng(0).standard_normal((2, 80, 3000), np.float32))
    original, flash = (TransformersEngine(name, "float32").load(job) for name in ("original", "flash"))
    assert len(original(1, True)) == 4
    assert flash(1, True) == original(1, True)
    assert flash(1, False) == original(1, False)


def test_openai_names_are_complete_and_give_the_same_logits(mini_cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    whisper = pytest.importorskip("whisper", reason="openai-whisper is not installed")
    # openai-whisper's feed-forward layers are four times as wide as the model, as in all published checkpoints.
    mini = CHECKPOINTS[mini_cell.checkpoint]
    monkeypatch.setitem(CHECKPOINTS, mini_cell.checkpoint, mini._replace(ffn=4 * mini.d_model))
    source = Weights(mini_cell, "random").build("original", torch.device("cpu"), torch.float32)
    model = whisper.model.Whisper(whisper.model.ModelDimensions(**openai_dimensions(make_config(mini_cell))))
    ours = openai_state_dict(source.state_dict())
    theirs = model.state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}
    model = engines.build_openai_model(whisper, mini_cell, "random")
    features = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[50257, 50362, 11, 300]])
    with torch.no_grad():
        expected = source(input_features=features, decoder_input_ids=tokens).logits
        torch.testing.assert_close(model(features, tokens), expected, rtol=1e-4, atol=1e-4)


def test_openai_names() -> None:
    assert openai_name("model.decoder.layers.3.encoder_attn.q_proj.bias") == "decoder.blocks.3.cross_attn.query.bias"
    assert openai_name("model.decoder.layers.0.self_attn_layer_norm.weight") == "decoder.blocks.0.attn_ln.weight"
    assert openai_name("model.encoder.layer_norm.bias") == "encoder.ln_post.bias"
    assert openai_name("model.encoder.embed_positions.weight") == "encoder.positional_embedding"


@pytest.mark.parametrize("size", [51864, 51865, 51866])
def test_ctranslate2_finds_the_special_tokens(size: int) -> None:
    words = ctranslate2_words(size)
    assert len(set(words)) == len(words) == size
    assert words.index("<|nospeech|>") == words.index("<|notimestamps|>") - 1


PEERS = [engines.FasterWhisperEngine("float32"), engines.OpenaiWhisperEngine()]


@pytest.mark.slow
@pytest.mark.parametrize("engine", PEERS, ids=lambda engine: engine.name)
def test_a_peer_generates_the_originals_tokens(engine: Engine, tmp_path: Path) -> None:
    module = {"faster-whisper": "faster_whisper", "openai-whisper": "whisper"}[engine.name]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{engine.name} is not installed")
    job = JOB._replace(new_tokens=25, threads=torch.get_num_threads(), folder=tmp_path)
    generator = torch.Generator().manual_seed(0)
    np.save(job.features, torch.randn(1, 80, 3000, generator=generator).numpy())
    expected = TransformersEngine("original", "float32").load(job)(0, True)
    worker = Worker(engine)
    try:
        if engine.name == "faster-whisper":
            contest.convert(job)
        worker.load(job)
        assert worker.time_round().tokens == expected
    finally:
        worker.close()
    assert len(expected) == 25


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checkpoint", "tiniest"], "'tiniest' is unknown"),
        (["--rounds", "0"], "0 is too few"),
        (["--rounds", "many"], "many"),
        (["--weights", "mine"], "mine"),
        (["--only", "nothing"], "nothing"),
        (["--dataset", "/no/such/folder"], "--dataset /no/such/folder: there is no such folder"),
        (["--json", "/no/such/folder/f.json"], "there is no such folder"),
        (["--json", "."], "a folder"),
        (["surplus"], "surplus"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main(["peers", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.strip().splitlines()
    assert said in line


def test_an_unknown_command_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main(["peer"]) == 2
    assert "no command 'peer'" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = "import sys; from perf_tests.peers import command; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    shown = run([sys.executable, "-m", "perf_tests", "peers", "--help"])
    assert shown.returncode == 0
    assert "--weights" in shown.stdout


@pytest.fixture
def small_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with rows and engines that need no model."""
    met = Result(ROWS[0], Estimate(0.5, 0.4, 0.7), 0.2, 0.1, None, {"original": [0.2], "flash": [0.1]}, 0.0)
    flash = TransformersEngine("flash", "float32")
    entries = [
        Entry("tiny.en", "float32", flash, (0.1,), Estimate(0.5, None, None), [1], None, ["Yes."]),
        Entry("tiny.en", "float32", engines.OpenaiWhisperEngine(), reason="openai-whisper is not installed"),
    ]
    monkeypatch.setattr(command, "measure_rows", lambda *_: [met])
    monkeypatch.setattr(command, "contend", lambda *_: entries)


@pytest.mark.usefixtures("small_command")
def test_what_the_command_prints_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "peers.json"
    assert dispatcher.main(["peers", "--json", str(path)]) == 0
    output = capsys.readouterr().out
    for text in (ROWS[0].name, "0.500 [0.400, 0.700]", "openai-whisper is not installed", "equal"):
        assert text in output
    saved: dict[str, Any] = json.loads(path.read_text())
    assert {*saved} == {"schema_version", "weights", "audio", "machine", "rows", "peers"}
    assert saved["rows"][0]["ratio"] == {"median": 0.5, "low": 0.4, "high": 0.7}
    first, second = saved["peers"]
    assert {*first} == {*second}
    assert (first["ratio"]["median"], first["tokens_equal"], first["reason"]) == (0.5, True, None)
    assert (second["ratio"], second["tokens_equal"]) == (None, None)
    assert second["reason"] == "openai-whisper is not installed"


def test_exit_codes() -> None:
    good = Result(ROWS[0], Estimate(0.6, None, None))
    assert command.judge([good], []) == 0
    assert command.judge([good, Result(ROWS[0], reason="cannot")], []) == 1
    assert command.judge([good._replace(first_difference=3)], []) == 1
    lost = Entry("tiny.en", "float32", TransformersEngine("flash", "float32"), reason="died")
    assert command.judge([good], [lost]) == 1


def test_speech_of_the_rows_fills_the_largest_batch() -> None:
    speech = Speech(make_speech(2), "synthetic")
    with Workshop("random", speech).borrow("original", Row("tiny.en", 1, 16, 2, 1)) as subject:
        assert subject.features.shape == (16, 80, 3000)
