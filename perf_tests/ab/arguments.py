"""What ``ab`` and ``calibrate`` share: where a session is kept, and being interrupted."""

import hashlib
import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from perf_tests.common.errors import BadInputError
from perf_tests.common.files import check_writable
from perf_tests.common.text import clean

# Below the repository's root, where interrupted sessions wait to go on.
SESSIONS = ".perf_runs"


def session_name(command: str, parts: Sequence[str]) -> str:
    """The name of the session of ``command`` that measures just what ``parts`` say, so that it is found again."""
    return f"{command}-{hashlib.sha256(json.dumps([*parts]).encode()).hexdigest()[:12]}"


@contextmanager
def session_kept(folder: Path, elsewhere: str) -> Iterator[None]:
    """A session whose runs are kept in ``folder``: an interrupted one ends in a line that says where its work waits.

    Interrupts are Ctrl-C, and SIGTERM as a CI job's cancellation sends it. ``elsewhere`` says what to do where the
    folder cannot be written to, as in a checkout that is mounted for reading alone.

    Raises:
        BadInputError: that, or an interrupt.
    """
    try:
        check_writable(folder)
    except BadInputError as error:
        raise BadInputError(f"{error}; {elsewhere}") from None

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        raise BadInputError(
            f"interrupted; what was measured is in {clean(folder)}, and the same command goes on from there"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)
