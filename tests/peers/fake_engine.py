"""An engine without a model. Workers import this file, so it imports no torch."""

import os
from dataclasses import dataclass

from perf_tests.peers.engines import Job, Round, import_peer


@dataclass(frozen=True)
class FakeEngine:
    """Needs no model; `behaviour` says how it fails."""

    behaviour: str = "works"
    name: str = "fake"
    dtype: str = "float32"
    version: str | None = None

    def load(self, job: Job) -> Round:
        if self.behaviour == "missing":
            import_peer("no_such_peer", "no-such-peer")
        if self.behaviour == "raises":
            raise AttributeError("libnothing.so\nhas no symbol")
        if self.behaviour == "dies":
            os._exit(3)
        calls = []

        def run_round(clip: int, forced: bool) -> list[int]:
            calls.append(clip)
            if self.behaviour == "fails later" and len(calls) > 1:
                raise ValueError("no more")
            return [os.getpid(), len(calls), clip, int(forced), int("OMP_WAIT_POLICY" in os.environ)]

        return run_round
