"""Speech for the cases: a data set where it can be had, else audio made here that looks like speech.

Everything is mono float32 at 16 kHz. Imports no torch: data sets are read as bytes and decoded by soundfile,
since ``datasets`` would decode through torchcodec, whose wheel wants CUDA libraries even on a CPU.
"""

import io
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from perf_tests.common.errors import BadInputError
from perf_tests.common.text import first_line
from perf_tests.matrix.plan import DEFAULT_DATASET, SOUND_FILES, SYNTHETIC, TABLE_FILES, files_in

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

SAMPLING_RATE = 16_000
LONGEST_SECONDS = 30
SYNTHETIC_VERSION = 1
PROBE_TIMEOUT_SECONDS = 3.0


class Speech(NamedTuple):
    """Clips of speech, what they are called in the run, and why they are not the default data set's.

    ``texts`` are what is said in each clip, where the data set says it.
    """

    clips: "list[Samples]"
    name: str
    fallback_reason: str | None = None
    texts: list[str] | None = None


def load_speech(dataset: str | None, count: int) -> Speech:
    """Load up to ``count`` clips of ``dataset``; of the default one, or synthetic ones, if it is ``None``.

    Raises:
        BadInputError: the data set was asked for and cannot be had.
    """
    if dataset == SYNTHETIC:
        return Speech(make_speech(count), SYNTHETIC)
    if dataset is not None:
        try:
            clips, texts = read_dataset(dataset, count)
        except BadInputError:
            raise
        except Exception as error:  # the libraries' errors have no common type; all mean the same here
            raise BadInputError(f"--perf-dataset {dataset}: cannot be read: {first_line(error)}") from None
        return Speech(clips, dataset, texts=texts)
    try:
        if not is_cached(DEFAULT_DATASET) and go_offline_unless_reachable():
            return Speech(make_speech(count), SYNTHETIC, "the Hub is not reachable")
        clips, texts = read_dataset(DEFAULT_DATASET, count)
    except Exception as error:  # as above; the default is a wish, not an order
        return Speech(make_speech(count), SYNTHETIC, first_line(error))
    return Speech(clips, DEFAULT_DATASET, texts=texts)


def read_dataset(name_or_folder: str, count: int) -> "tuple[list[Samples], list[str] | None]":
    """Read up to ``count`` clips, and what is said in them where a column ``text`` has it.

    A folder of sound files is read as it is. Everything else is read with ``datasets``, from the split
    ``validation`` or else the first.
    """
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir() and not files_in(folder, TABLE_FILES):
        return [decode({"path": path}) for path in files_in(folder, SOUND_FILES)[:count]], None
    if not folder.is_dir():
        go_offline_unless_reachable()
    import datasets

    source = str(folder.resolve()) if folder.is_dir() else name_or_folder
    configuration = ("clean",) if name_or_folder == DEFAULT_DATASET else ()
    was_enabled = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(source, *configuration)
    finally:
        if was_enabled:
            datasets.enable_progress_bars()
    split = splits["validation"] if "validation" in splits else next(iter(splits.values()))
    if "audio" not in split.column_names or not len(split):
        raise BadInputError(f"--perf-dataset {name_or_folder}: holds no audio (no column named 'audio', or no row)")
    rows = split.cast_column("audio", datasets.Audio(decode=False)).select(range(min(count, len(split))))
    texts = [str(text) for text in rows["text"]] if "text" in split.column_names else None
    return [decode(row["audio"]) for row in rows], texts


def decode(audio: dict[str, Any]) -> "Samples":
    """Decode a row's ``{"bytes", "path"}`` to at most 30 s of mono at 16 kHz."""
    import numpy as np
    import soundfile
    from scipy.signal import resample_poly

    source = io.BytesIO(audio["bytes"]) if audio.get("bytes") else audio["path"]
    samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if rate != SAMPLING_RATE:
        mono = resample_poly(mono, SAMPLING_RATE, rate)
    return np.ascontiguousarray(mono[: LONGEST_SECONDS * SAMPLING_RATE], dtype=np.float32)


def make_speech(count: int) -> "list[Samples]":
    """Make ``count`` clips of 8 to 28 s: syllables with gliding pitch and formants, hisses and pauses."""
    import numpy as np

    return [_make_clip(np.random.default_rng((SYNTHETIC_VERSION, index))) for index in range(count)]


def _make_clip(random: "np.random.Generator") -> "Samples":
    import numpy as np

    pieces: list[Any] = []
    remaining = int(random.uniform(8, 28) * SAMPLING_RATE)
    while remaining > 0:
        length = int(random.uniform(0.08, 0.25) * SAMPLING_RATE)
        time = np.arange(length) / SAMPLING_RATE
        kind = random.choice(3, p=(0.65, 0.2, 0.15))
        if kind == 0:
            pitch = random.uniform(90, 220) * (1 + random.uniform(-0.3, 0.3) * time / time[-1])
            phase = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
            formants = random.uniform((300, 900, 2200), (800, 2200, 3200))
            harmonics = np.arange(1, 30)
            centres = harmonics * pitch.mean()
            # A formant is a peak in the spectrum's envelope, here about 100 Hz wide.
            gains = (1 / (1 + ((centres[:, None] - formants) / 100) ** 2)).sum(axis=1)
            piece = (gains[:, None] * np.sin(harmonics[:, None] * phase)).sum(axis=0) * np.hanning(length)
        elif kind == 1:
            piece = 0.3 * np.diff(random.standard_normal(length + 1)) * np.hanning(length)
        else:
            piece = np.zeros(length)
        pieces.append(piece)
        remaining -= length
    clip = np.concatenate(pieces) + 1e-3 * random.standard_normal(sum(map(len, pieces)))
    clip = clip[: LONGEST_SECONDS * SAMPLING_RATE]
    return np.asarray(0.5 * clip / np.abs(clip).max(), dtype=np.float32)


def is_cached(dataset: str) -> bool:
    """Whether ``datasets`` has prepared this Hub data set before: its cache has a folder of that name."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets"))
    return (cache / dataset.replace("/", "___")).is_dir()


def go_offline_unless_reachable() -> bool:
    """Try the Hub once, for 3 s at most; where it does not answer, spare its clients' long series of retries.

    Returns:
        Whether this process is offline now. The switch is read when ``huggingface_hub`` is first imported.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return True
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return False
    except (OSError, ValueError):
        os.environ["HF_HUB_OFFLINE"] = "1"
        return True
    return False
