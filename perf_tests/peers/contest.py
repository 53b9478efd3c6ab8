"""The contest: every engine in a process of its own, asked for one round in turn, round after round."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from perf_tests.common.intervals import Estimate, estimate_speedup

from .engines import (
    CONTENDERS,
    CONTROLS,
    Engine,
    FasterWhisperEngine,
    Job,
    PeerError,
    import_peer,
    quieten_transformers,
)
from .tokens import find_difference
from .worker import Timed, Worker, call_alone

# Time for an engine's threads to fall asleep before the next one starts; 20 ms were enough where it was tried.
PAUSE_SECONDS = 0.05

Tell = Callable[[str], None]
# Makes text of tokens.
Decode = Callable[[list[int]], str]


class Entry(NamedTuple):
    """An engine beside its control, the original in ``control`` precision.

    Without a ratio, ``reason`` says why. ``first_difference`` is the place of its first token that is not the
    control's; ``transcripts`` are its words for each clip of speech, where speech was checked.
    """

    checkpoint: str
    control: str
    engine: Engine
    seconds: tuple[float, ...] = ()
    ratio: Estimate | None = None
    tokens: list[int] | None = None
    first_difference: int | None = None
    transcripts: list[str] | None = None
    reason: str | None = None

    def record(self) -> dict[str, Any]:
        """The entry in plain numbers, for JSON."""
        return {
            "checkpoint": self.checkpoint,
            "control": self.control,
            "engine": self.engine.name,
            "dtype": self.engine.dtype,
            "version": self.engine.version,
            "median_seconds": median(self.seconds) if self.seconds else None,
            "rounds_seconds": list(self.seconds),
            "ratio": self.ratio._asdict() if self.ratio else None,
            "tokens": self.tokens,
            "tokens_equal": None if self.tokens is None else self.first_difference is None,
            "first_difference": self.first_difference,
            "transcripts": self.transcripts,
            "reason": self.reason,
        }


def hold_contest(job: Job, rounds: int, decode: Decode | None, clips: int, tell: Tell) -> list[Entry]:
    """Run all engines on ``job``; with ``decode`` have them transcribe the first ``clips`` clips too.

    Raises:
        PeerError: the original in float32 cannot run, so there is nothing to compare with.
    """
    workers: dict[Engine, Worker] = {}
    reasons: dict[Engine, str] = {}
    try:
        for engine in _all_engines():
            tell(f"loading {engine.name} {engine.dtype}")
            worker = Worker(engine)
            try:
                if isinstance(engine, FasterWhisperEngine):
                    convert(job)
                worker.load(job)
                workers[engine] = worker
            except PeerError as error:
                reasons[engine] = str(error)
                worker.close()
        if CONTROLS["float32"] not in workers:
            raise PeerError(reasons[CONTROLS["float32"]])
        tell(f"{rounds} rounds of {len(workers)} engines")
        timed = run_rounds(workers, rounds, reasons)
        transcripts = transcribe(workers, timed, decode, clips, reasons) if decode is not None else {}
    finally:
        for worker in workers.values():
            worker.close()
    return list_entries(job.cell.checkpoint, timed, reasons, transcripts)


def run_rounds(workers: Mapping[Engine, Worker], rounds: int, reasons: dict[Engine, str]) -> dict[Engine, list[Timed]]:
    """Ask each worker in turn; one that fails on the way is out, and its reason is added to ``reasons``."""
    timed: dict[Engine, list[Timed]] = {engine: [] for engine in workers}
    for _ in range(rounds):
        for engine in tuple(timed):
            time.sleep(PAUSE_SECONDS)
            try:
                timed[engine].append(workers[engine].time_round())
            except PeerError as error:
                reasons[engine] = str(error)
                del timed[engine]
    return timed


def transcribe(
    workers: Mapping[Engine, Worker],
    timed: dict[Engine, list[Timed]],
    decode: Decode,
    clips: int,
    reasons: dict[Engine, str],
) -> dict[Engine, list[str]]:
    """What each engine hears, as many tokens as it takes; one that fails is out of ``timed`` too."""
    transcripts: dict[Engine, list[str]] = {}
    for engine in tuple(timed):
        try:
            transcripts[engine] = [decode(workers[engine].transcribe(clip)) for clip in range(clips)]
        except PeerError as error:
            reasons[engine] = str(error)
            del timed[engine]
    return transcripts


def list_entries(
    checkpoint: str,
    timed: Mapping[Engine, Sequence[Timed]],
    reasons: Mapping[Engine, str],
    transcripts: Mapping[Engine, list[str]],
) -> list[Entry]:
    """Each control and what is compared with it, in the table's order."""
    entries = []
    for control_dtype, contenders in CONTENDERS:
        control = CONTROLS[control_dtype]
        for engine in (control, *contenders):
            entry = Entry(checkpoint, control_dtype, engine, reason=reasons.get(engine))
            if control not in timed:
                entry = entry._replace(reason=entry.reason or reasons[control])
            elif engine in timed:
                entry = _compare(entry, timed[engine], timed[control])._replace(transcripts=transcripts.get(engine))
            entries.append(entry)
    return entries


def convert(job: Job) -> None:
    """Convert the weights for CTranslate2, once, in a process of its own: conversion needs torch.

    Raises:
        PeerError: it cannot be done.
    """
    call_alone(_convert, job)


def _convert(job: Job) -> None:
    """In a process of its own: where faster-whisper is missing, the reason comes before the work."""
    import_peer("faster_whisper", "faster-whisper")
    if (job.ctranslate2 / "model.bin").exists():
        return
    from .convert import save_for_ctranslate2

    quieten_transformers()
    job.ctranslate2.mkdir(exist_ok=True)
    save_for_ctranslate2(job.cell, job.weights, job.ctranslate2)


def _compare(entry: Entry, rounds: Sequence[Timed], control: Sequence[Timed]) -> Entry:
    seconds = tuple(timed.seconds for timed in rounds)
    return entry._replace(
        seconds=seconds,
        # The suite's speed-up is control over subject; here it is the other way round.
        ratio=estimate_speedup(seconds, [timed.seconds for timed in control]),
        tokens=rounds[0].tokens,
        first_difference=find_difference(rounds[0].tokens, control[0].tokens),
    )


def _all_engines() -> list[Engine]:
    """Every engine once: controls first, then in the table's order."""
    engines: list[Engine] = [*CONTROLS.values()]
    engines += [engine for _, contenders in CONTENDERS for engine in contenders]
    return list(dict.fromkeys(engines))
