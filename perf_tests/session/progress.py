"""What a running case is doing, told between rounds: a line that rewrites itself, or lines in a log."""

import time
from typing import TYPE_CHECKING, Any

from perf_tests.common.units import format_duration

if TYPE_CHECKING:
    import pytest

REWRITE_SECONDS = 0.5
LOG_SECONDS = 20.0


class Progress:
    """Writes through pytest's terminal reporter, with capturing lifted for the moment of writing.

    It is called between rounds and between passes only, so what it costs is in no measurement.
    """

    def __init__(self, config: "pytest.Config") -> None:
        self._reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
        self._capture: Any = config.pluginmanager.get_plugin("capturemanager")
        self._title = ""
        self._phase = ""
        self._rounds = 0
        self._phase_start = self._last_write = time.monotonic()
        self._on_line = False
        self._seconds: dict[str, float] = {}

    def start(self, title: str) -> None:
        """A case begins."""
        self._title, self._rounds, self._phase = title, 0, ""
        self._seconds = {}
        self._last_write = time.monotonic()
        self.phase("starting")
        if self._reporter is not None:
            self._reporter.flush()

    def phase(self, name: str, rounds: int = 0) -> None:
        """A pass begins; with a number of rounds to come, if it has rounds."""
        self._end_phase()
        self._phase, self._rounds = name, rounds
        self._write(0)

    def pass_seconds(self) -> dict[str, float]:
        """What each pass of the case has taken so far, in seconds, by name."""
        self._end_phase()
        return dict(self._seconds)

    def _end_phase(self) -> None:
        now = time.monotonic()
        if self._phase:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._phase_start
        self._phase_start = now

    def rounds_done(self, done: int) -> None:
        """So many rounds of the pass are done."""
        self._write(done)

    def finish(self) -> None:
        """A case has ended: clear the rewritten line."""
        if self._on_line:
            self._emit("\r" + " " * 78 + "\r")
            self._on_line = False

    @property
    def _is_terminal(self) -> bool:
        return bool(self._reporter is not None and self._reporter.isatty)

    def _write(self, done: int) -> None:
        now = time.monotonic()
        interval = REWRITE_SECONDS if self._is_terminal else LOG_SECONDS
        if self._reporter is None or now - self._last_write < interval:
            return
        self._last_write = now
        text = f"{self._title}: {self._phase}"
        if self._rounds:
            text += f", round {done} of {self._rounds}"
            if done:
                left = (now - self._phase_start) / done * (self._rounds - done)
                text += f", {format_duration(left)} left"
        if self._is_terminal:
            self._emit(f"\r{text[:78]:<78}")
            self._on_line = True
        else:
            self._emit(f"    {text}\n")

    def _emit(self, text: str) -> None:
        if self._capture is None:
            self._reporter.write(text, flush=True)
            return
        with self._capture.global_and_fixture_disabled():
            self._reporter.write(text, flush=True)
