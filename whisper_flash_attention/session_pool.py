"""Sessions of captured decoding that wait for the next call of their shape."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .captured_decoding import GreedySession
from .kv_cache import CacheShape
from .timestamps import TimestampRules
from .weights import DecoderWeights

IDLE_SHARE = 0.1
"""Sessions that wait for a call of their shape may hold this share of the device's memory, beside the last one used:
the batches of long-form audio shrink window by window, and come back with the next call."""

CAPACITY_STEP = 32
"""Sessions hold a multiple of so many positions. 25 tokens behind a prompt of 2 are cached in 26 positions, so that of
32 six lie idle: in medium.en 24 layers · 2 · 1024 · 6 numbers, a fifth of its encoder states. Of 64 they would be 1.2
times these, and with them its call would take as much memory as Transformers'."""


class SessionPool:
    """The sessions of one model: one that fits is lent to a call, and waits for the next one afterwards."""

    def __init__(self) -> None:
        self._idle: list[GreedySession] = []  # the last used last
        self._lock = threading.Lock()

    @contextmanager
    def lend(
        self,
        weights: DecoderWeights,
        shape: CacheShape,
        eos: Tensor | None,
        pad: Tensor | None,
        timestamps: TimestampRules | None,
        *,
        stores_cross: bool,
        hides: bool,
    ) -> Iterator[GreedySession]:
        """Lend a session for one call; the arguments are those of `GreedySession`.

        Its capacity may be larger than that of `shape`: prompts differ from window to window, and a graph that is
        there is worth more than the memory of some positions.
        """
        shape = shape._replace(capacity=-(-shape.capacity // CAPACITY_STEP) * CAPACITY_STEP)
        places, wanted = weights.places(), (shape, eos, pad, timestamps)
        with self._lock:
            # Sessions of weights that have moved hold memory that nobody comes back for.
            self._idle = [session for session in self._idle if session.places == places]
            session = next((s for s in self._idle if s.serves(*wanted, stores_cross=stores_cross, hides=hides)), None)
            if session is not None:
                self._idle.remove(session)
                session.weights = weights
            self._let_go(weights)
        if session is None:
            session = GreedySession(weights, *wanted, stores_cross=stores_cross, hides=hides, captures=True)
        yield session
        with self._lock:
            # Where a capture has failed, nobody asks for a session again.
            self._idle = [*self._idle, session] if session.captures else []

    def _let_go(self, weights: DecoderWeights) -> None:
        """Forget the sessions that have waited longest, until the rest hold no more than their share of memory."""
        device = weights.vocabulary.weight.device
        allowed = IDLE_SHARE * torch.cuda.get_device_properties(device).total_memory
        while sum(session.nbytes for session in self._idle) > allowed:
            del self._idle[0]
