import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from perf_tests.common.errors import BadInputError
from perf_tests.matrix.plan import DEFAULT_DATASET
from perf_tests.subjects import audio
from perf_tests.subjects.audio import SAMPLING_RATE, decode, load_speech, make_speech


def tone(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    wave = np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two short clips."""
    folder = tmp_path / "speech"
    folder.mkdir()
    for index in range(2):
        soundfile.write(folder / f"{index}.wav", tone(1 + index, 8_000, channels=2), 8_000)
    return folder


def test_synthetic_speech_is_the_same_every_time() -> None:
    first, again = make_speech(2), make_speech(3)
    for one, other in zip(first, again, strict=False):
        np.testing.assert_array_equal(one, other)
    assert len({clip.tobytes() for clip in again}) == 3


def test_synthetic_speech_is_audio() -> None:
    for clip in make_speech(4):
        assert clip.dtype == np.float32
        assert clip.ndim == 1
        assert 8 * SAMPLING_RATE <= len(clip) <= 30 * SAMPLING_RATE
        assert 0.1 < np.abs(clip).max() <= 1
        quiet = np.abs(clip).reshape(-1)[: len(clip) // 400 * 400].reshape(-1, 400).max(axis=1)
        assert (quiet < 0.02).any(), "speech has pauses"


def test_decoding_mixes_resamples_and_cuts() -> None:
    file = io.BytesIO()
    soundfile.write(file, tone(31, 8_000, channels=2), 8_000, format="wav")
    samples = decode({"bytes": file.getvalue(), "path": None})
    assert samples.shape == (30 * SAMPLING_RATE,)
    assert samples.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() / 30 == pytest.approx(440, abs=1)


def test_a_folder_is_read(folder: Path) -> None:
    speech = load_speech(str(folder), 5)
    assert speech.name == str(folder)
    assert sorted(len(clip) for clip in speech.clips) == [SAMPLING_RATE, 2 * SAMPLING_RATE]


def test_a_table_is_read(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(folder.iterdir())]
    datasets.Dataset.from_dict({"audio": rows}).to_parquet(tmp_path / "table" / "validation.parquet")
    speech = load_speech(str(tmp_path / "table"), 1)
    (clip,) = speech.clips
    np.testing.assert_array_equal(clip, load_speech(str(folder), 1).clips[0])


def test_a_data_set_without_audio_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.Dataset.from_dict({"text": ["no sound"]}).to_parquet(tmp_path / "data" / "validation.parquet")
    with pytest.raises(BadInputError, match="holds no audio"):
        load_speech(str(tmp_path / "data"), 1)


def test_broken_audio_is_bad_input(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"not audio")
    with pytest.raises(BadInputError, match="cannot be read") as error:
        load_speech(str(folder), 1)
    assert "\n" not in str(error.value)


def test_the_default_gives_way_without_trying_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = []

    def refuse(request: object, timeout: float) -> None:
        probes.append(timeout)
        raise OSError("no route")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(audio, "is_cached", lambda dataset: False)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    speech = load_speech(None, 2)
    assert speech.name == "synthetic"
    assert "not reachable" in speech.fallback_reason
    load_speech(None, 1)
    assert probes == [audio.PROBE_TIMEOUT_SECONDS]
    monkeypatch.delenv("HF_HUB_OFFLINE")


def test_the_default_is_used_where_it_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "is_cached", lambda dataset: True)
    monkeypatch.setattr(audio, "read_dataset", lambda name, count: ([np.zeros(9, np.float32)] * count, None))
    speech = load_speech(None, 2)
    assert (speech.name, len(speech.clips), speech.fallback_reason) == (DEFAULT_DATASET, 2, None)


def test_a_default_that_breaks_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(name: str, count: int) -> None:
        raise RuntimeError("half a download\nand a long story")

    monkeypatch.setattr(audio, "is_cached", lambda dataset: True)
    monkeypatch.setattr(audio, "read_dataset", break_down)
    assert load_speech(None, 1).fallback_reason == "RuntimeError: half a download"
