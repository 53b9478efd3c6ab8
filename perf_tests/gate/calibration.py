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
                "timer": "perf_counter",                                # the clock; this one where the key is missing
                "runs": 12,                                             # how many runs of unchanged code
                "noise": 0.021,                                         # noise.py says what they are
                "smallest_visible_change": 0.034,
                "yardstick": true                                       # false where the runs had none
            },                                                          # and, of one that an earlier calibration left,
            …                                                           # that one's datetime and commit
        }
    }

Only ``noise`` and ``yardstick`` decide anything. A case that is not in the file, or is in it with another definition
or clock, has the default noise. What was measured without the yardstick (any file that does not know the key) is an
upper bound for comparisons with it and holds; what was measured with it is none for those without, which have the
default noise at least.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from perf_tests.common.errors import BadInputError
from perf_tests.common.files import write_file
from perf_tests.common.text import clean, count_of
from perf_tests.runs.fingerprint import describe_machine, digest, fingerprint_of
from perf_tests.runs.records import TIMER, WALL_CLOCK
from perf_tests.runs.saved import Run
from perf_tests.runs.store import store_path

from .noise import CaseNoise
from .thresholds import DEFAULT_NOISE

CALIBRATION_VERSION = 1
# When a case was measured, and of what.
ORIGIN = ("datetime", "commit")
# A machine does not stay as it was: kernels, firmware, neighbours.
DUE_DAYS = 90


class Noise(NamedTuple):
    """A case's noise, relative, and whether it was measured here; ``yardstick`` as in ``CaseNoise``.

    ``made`` is when it was measured, ``commit`` of what; ``None`` where it was not, or is not known.
    """

    noise: float
    calibrated: bool
    yardstick: bool = False
    made: datetime | None = None
    commit: str | None = None

    def without_yardstick(self) -> "Noise":
        """The noise of a comparison by the control alone."""
        return self._replace(noise=max(self.noise, DEFAULT_NOISE), yardstick=False) if self.yardstick else self


class Calibration(NamedTuple):
    """A machine's noise, by case id, definition and clock; empty where there is no file at ``path``.

    ``machine`` says for which kind of machine it is.
    """

    path: Path
    machine: str
    cases: Mapping[tuple[str, object, object], Noise]

    def of(self, case_id: str, definition: Mapping[str, object]) -> Noise:
        """The noise of a case, by its record's ``definition``."""
        key = (case_id, definition.get("case_definition"), definition.get(TIMER))
        return self.cases.get(key, Noise(DEFAULT_NOISE, calibrated=False))

    def describe(self, used: Collection[Noise], now: datetime) -> str:
        """A line on where ``used``, of its noise, is from, and when the oldest of it was measured."""
        oldest = min(used, key=lambda noise: noise.made or now)
        days = max(0, (now - (oldest.made or now)).days)  # whose clock is ahead made it today
        age = f"{count_of(days, 'day')} ago" if days else "today"
        commit = f" (commit {clean(oldest.commit[:10])})" if oldest.commit else ""
        due = "; calibrating again is due (python -m perf_tests calibrate)" if days > DUE_DAYS else ""
        return f"noise from the calibration of {self.machine}, made {age}{commit}{due}"


def calibration_path(machine_info: Mapping[str, Any]) -> Path:
    """The file of the calibration of the machine that ``machine_info`` describes."""
    return store_path() / "calibrations" / f"{digest(fingerprint_of(machine_info))}.json"


def write_calibration(runs: Sequence[Run], cases: Mapping[str, CaseNoise]) -> Path:
    """Write the noise of ``cases``, measured in ``runs``; cases of an earlier calibration that are not in it stay.

    These keep when and of what they were measured.

    Raises:
        BadInputError: it cannot be written, or what is there cannot be read.
    """
    first = runs[0]
    path = calibration_path(first.machine_info)
    read_calibration(first.machine_info)  # refuses what would be lost
    earlier = json.loads(path.read_bytes()) if path.exists() else {"cases": {}}
    origin = {key: earlier[key] for key in ORIGIN if key in earlier}
    entries = {case_id: origin | entry for case_id, entry in earlier["cases"].items()}
    for case_id, noise in cases.items():
        definition = first.records[case_id].definition
        entries[case_id] = {key: definition[key] for key in ("case_definition", TIMER)} | noise._asdict()
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
    path, machine = calibration_path(machine_info), describe_machine(machine_info, ("torch",))
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Calibration(path, machine, {})
    except OSError as error:
        raise BadInputError(f"{clean(path)}: cannot be read: {error.strerror}") from None
    try:
        document = json.loads(content)
        return Calibration(path, machine, _read_cases(document, fingerprint_of(machine_info)))
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{clean(path)}: no calibration: {clean(error)}; calibrate again, or remove it") from None


def _read_cases(document: object, fingerprint: Mapping[str, object]) -> dict[tuple[str, object, object], Noise]:
    if not isinstance(document, Mapping) or not isinstance(document.get("cases"), Mapping):
        raise ValueError("JSON of another kind")
    if document.get("calibration_version") != CALIBRATION_VERSION:
        raise ValueError(f"calibration_version {document.get('calibration_version')}, not {CALIBRATION_VERSION}")
    if document.get("fingerprint") != fingerprint:
        raise ValueError("its fingerprint is another machine's")
    _read_datetime(document)
    cases: dict[tuple[str, object, object], Noise] = {}
    for case_id, entry in document["cases"].items():
        noise = entry.get("noise") if isinstance(entry, Mapping) else None
        if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < math.inf:
            raise ValueError(f"{case_id}: no noise of 0 or more")
        timer = entry.get(TIMER, WALL_CLOCK)
        if not isinstance(entry.get("case_definition"), str) or not isinstance(timer, str):
            raise ValueError(f"{case_id}: no case_definition, or no timer")
        yardstick = entry.get("yardstick") is True
        origin = {key: document.get(key) for key in ORIGIN} | entry
        commit = origin["commit"] if isinstance(origin["commit"], str) else None
        cases[case_id, entry["case_definition"], timer] = Noise(
            float(noise), True, yardstick, _read_datetime(origin), commit
        )
    return cases


def _read_datetime(origin: Mapping[str, Any]) -> datetime:
    text = origin.get("datetime")
    try:
        made = datetime.fromisoformat(text if isinstance(text, str) else "")
    except ValueError:
        made = None
    if made is None or made.tzinfo is None:
        raise ValueError(f"datetime: {text!r:.60} is no time with its zone")
    return made
