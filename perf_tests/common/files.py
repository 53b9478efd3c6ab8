"""Writing files so that nothing is ever half written."""

import os
import tempfile
from pathlib import Path

from .errors import BadInputError
from .text import clean


def write_file(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all.

    Raises:
        BadInputError: it cannot be written; what was there before still is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(draft).chmod(0o644)
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInputError(f"{clean(path)}: cannot be written: {reason}") from None


def check_writable(folder: Path) -> None:
    """Try to write in ``folder``, which is made if it is missing.

    Raises:
        BadInputError: it cannot be written to.
    """
    probe = folder / f".perf_writable_{os.getpid()}"
    try:
        write_file(probe, b"")
        probe.unlink(missing_ok=True)
    except (BadInputError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rpartition(": ")[2]
        raise BadInputError(f"cannot write to {clean(folder)}: {reason}") from None
