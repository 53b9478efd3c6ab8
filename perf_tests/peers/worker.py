"""An engine in a process of its own, which works only while it is asked to.

Two pools of OpenMP threads in one process slow each other, and an idle pool that spins slows everybody. So every
engine gets a process, the parent asks one at a time, and pauses before the next.

The pools keep their default policy, as their users run them: after a round they spin for a few milliseconds and
then sleep. ``OMP_WAIT_POLICY=passive`` would spare the pause, but slow the engines, and unequally: on a 2-core CPU
(tiny.en, 25 tokens) by 8 % (original, float32), 13 % (CTranslate2), 14 % (flash, float32) and 21 % (flash, bfloat16).
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from time import perf_counter
from typing import Generic, NamedTuple, TypeVar, cast

from perf_tests.common.text import first_line

from .engines import Engine, Job, PeerError, Round

T = TypeVar("T")

# What would have a pool spin for ever, or not at all; a worker starts without.
POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


class Timed(NamedTuple):
    """A round's seconds and tokens."""

    seconds: float
    tokens: list[int]


class Answer(NamedTuple, Generic[T]):
    """What a function returned in the other process, or the reason why it did not."""

    result: T | None
    reason: str | None


class Process:
    """A process that calls functions one after another. It starts with the first call."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked child would inherit a pool of threads
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_prepare)

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call ``function`` there and wait.

        Raises:
            PeerError: it raised an error, or the process died.
        """
        future = self._pool.submit(_guard, function, *arguments)
        try:
            answer: Answer[T] = future.result()
        except BrokenProcessPool:
            raise PeerError("its process died") from None
        if answer.reason is not None:
            raise PeerError(answer.reason)
        return cast(T, answer.result)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class Worker:
    """An engine, loaded in a process of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._process = Process()

    def load(self, job: Job) -> None:
        """Load the engine and run a round to warm it up.

        Raises:
            PeerError: it cannot take part.
        """
        self._process.call(_load, self.engine, job)

    def time_round(self) -> Timed:
        """Run one forced round of the first clip."""
        return self._process.call(_time_round)

    def transcribe(self, clip: int) -> list[int]:
        """Tokens of a clip, as many as it takes."""
        return self._process.call(_transcribe, clip)

    def close(self) -> None:
        self._process.close()


def call_alone(function: Callable[..., T], *arguments: object) -> T:
    """Call ``function`` in a process that ends with it.

    Raises:
        PeerError: it raised an error, or the process died.
    """
    process = Process()
    try:
        return process.call(function, *arguments)
    finally:
        process.close()


# What follows runs in the worker's process.

_loaded: list[Round] = []


def _prepare() -> None:
    """Leave Ctrl-C to the parent, and drop the user's policies before a library reads them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in POLICIES:
        os.environ.pop(name, None)


def _guard(function: Callable[..., T], *arguments: object) -> Answer[T]:
    """Call ``function``; its error becomes one line, since not every error can travel between processes."""
    try:
        return Answer(function(*arguments), None)
    except PeerError as error:
        return Answer(None, str(error))
    except Exception as error:  # a peer's own; whatever it is, it is the row's reason
        return Answer(None, first_line(error))


def _load(engine: Engine, job: Job) -> None:
    _loaded[:] = [engine.load(job)]
    _loaded[0](0, True)


def _time_round() -> Timed:
    start = perf_counter()
    tokens = _loaded[0](0, True)
    return Timed(perf_counter() - start, tokens)


def _transcribe(clip: int) -> list[int]:
    return _loaded[0](clip, False)
