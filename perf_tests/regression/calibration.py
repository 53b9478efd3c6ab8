"""A machine's calibrated noise in the store: how it is written, and read.

``$PERF_STORE/calibrations/<digest of the fingerprint>.json``, one file per machine and library versions:

    {
        "calibration_version": 1,
        "fingerprint": {"cpu.brand_raw": "…", "thread_count": 2, …},    # fingerprint.fingerprint_of(machine_info)
        "datetime": "2026-11-24T10:42:02+00:00",
        "commit": "28b7c31…",                                           # what was measured, again and again
        "cases": {
            "test_generate[tiny.en-4-single-flash]": {
                "case_definition": "7faea0f42648",
                "runs": 12,                                             # how many runs of unchanged code
                "noise": 0.021,                                         # noise.py says what they are
                "smallest_visible_change": 0.034,
                "yardstick": true                                       # false where the runs had none
            }, …
        }
    }

Only ``noise`` and ``yardstick`` decide anything. A case that is not in the file, or is in it with another definition,
has the default noise. What was measured without the yardstick (any file that does not know the key) is an upper bound
for comparisons with it and holds; what was measured with it is none for those without, which have the default noise
at least.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from perf_tests.plan import BadInputError

from .fingerprint import digest, fingerprint_of
from .noise import CaseNoise
from .runs import Run
from .store import store_path, write_file
from .text import clean
from .thresholds import DEFAULT_NOISE

CALIBRATION_VERSION = 1


class Noise(NamedTuple):
    """A case's noise, relative, and whether it was measured here; ``yardstick`` as in ``CaseNoise``."""

    noise: float
    calibrated: bool
    yardstick: bool = False

    def without_yardstick(self) -> "Noise":
        """The noise of a comparison by the control alone."""
        return self._replace(noise=max(self.noise, DEFAULT_NOISE), yardstick=False) if self.yardstick else self


class Calibration(NamedTuple):
    """A machine's noise, by case id and definition; empty where there is no file at ``path``."""

    path: Path
    cases: Mapping[tuple[str, object], Noise]

    def of(self, case_id: str, definition: object) -> Noise:
        """The noise of a case."""
        return self.cases.get((case_id, definition), Noise(DEFAULT_NOISE, calibrated=False))


def calibration_path(machine_info: Mapping[str, Any]) -> Path:
    """The file of the calibration of the machine that ``machine_info`` describes."""
    return store_path() / "calibrations" / f"{digest(fingerprint_of(machine_info))}.json"


def write_calibration(runs: Sequence[Run], cases: Mapping[str, CaseNoise]) -> Path:
    """Write the noise of ``cases``, measured in ``runs``; cases of an earlier calibration that are not in it stay.

    Raises:
        BadInputError: it cannot be written, or what is there cannot be read.
    """
    first = runs[0]
    path = calibration_path(first.machine_info)
    read_calibration(first.machine_info)  # refuses what would be lost
    entries = json.loads(path.read_bytes())["cases"] if path.exists() else {}
    for case_id, noise in cases.items():
        entries[case_id] = {"case_definition": first.records[case_id].definition["case_definition"], **noise._asdict()}
    document = {
        "calibration_version": CALIBRATION_VERSION,
        "fingerprint": fingerprint_of(first.machine_info),
        "datetime": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": first.commit,
        "cases": entries,
    }
    write_file(path, (json.dumps(document, indent=4) + "\n").encode())
    return path


def read_calibration(machine_info: Mapping[str, Any]) -> Calibration:
    """Read the calibration of a machine; an empty one where there is none.

    Raises:
        BadInputError: there is a file, and it is not as described above.
    """
    path = calibration_path(machine_info)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Calibration(path, {})
    except OSError as error:
        raise BadInputError(f"{clean(path)}: cannot be read: {error.strerror}") from None
    try:
        document = json.loads(content)
        return Calibration(path, _read_cases(document, fingerprint_of(machine_info)))
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{clean(path)}: no calibration: {clean(error)}; calibrate again, or remove it") from None


def _read_cases(document: object, fingerprint: Mapping[str, object]) -> dict[tuple[str, object], Noise]:
    if not isinstance(document, Mapping) or not isinstance(document.get("cases"), Mapping):
        raise ValueError("JSON of another kind")
    if document.get("calibration_version") != CALIBRATION_VERSION:
        raise ValueError(f"calibration_version {document.get('calibration_version')}, not {CALIBRATION_VERSION}")
    if document.get("fingerprint") != fingerprint:
        raise ValueError("its fingerprint is another machine's")
    cases: dict[tuple[str, object], Noise] = {}
    for case_id, entry in document["cases"].items():
        noise = entry.get("noise") if isinstance(entry, Mapping) else None
        if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < math.inf:
            raise ValueError(f"{case_id}: no noise of 0 or more")
        if not isinstance(entry.get("case_definition"), str):
            raise ValueError(f"{case_id}: no case_definition")
        yardstick = entry.get("yardstick") is True
        cases[case_id, entry["case_definition"]] = Noise(float(noise), calibrated=True, yardstick=yardstick)
    return cases
