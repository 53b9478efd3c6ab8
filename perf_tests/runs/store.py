"""Where promoted baselines and calibrations live.

``$PERF_STORE``, or else the user's data directory: out of the checkout, where a CI job does not clean it away.
"""

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from perf_tests.common.errors import BadInputError
from perf_tests.common.files import check_writable, write_file
from perf_tests.common.text import clean

APPLICATION = "whisper-flash-attention"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
# What reads as a commit or as the newest run would hide behind it.
_TAKEN = re.compile(r"[0-9a-f]{4,40}|latest.*|.*\.json", re.IGNORECASE)


def store_path() -> Path:
    """The store's folder, which may not exist yet."""
    chosen = os.environ.get("PERF_STORE")
    if chosen:
        return Path(chosen)
    from platformdirs import user_data_path

    try:
        return user_data_path(APPLICATION)
    except RuntimeError:  # this user has no home, and so no baselines
        return Path("~", APPLICATION)


def check_store() -> None:
    """Refuse a store that nothing can be kept in, before what is to be kept is measured.

    Raises:
        BadInputError: there is no such folder and no home to make one in, or it cannot be written to.
    """
    folder = store_path()
    if not (os.environ.get("PERF_STORE") or folder.is_absolute()):
        raise BadInputError("this user has no home folder to keep that in; set PERF_STORE to a folder")
    try:
        check_writable(folder)
    except BadInputError as error:
        raise BadInputError(f"{error}; set PERF_STORE to another folder") from None


def is_name(text: str) -> bool:
    """Whether ``text`` could be a promoted baseline's name."""
    return bool(_NAME.fullmatch(text)) and not _TAKEN.fullmatch(text)


def baseline_path(name: str) -> Path:
    """The file of the promoted baseline called ``name``.

    Raises:
        BadInputError: such a name is not allowed.
    """
    if not is_name(name):
        raise BadInputError(
            f"{clean(name)!r} cannot name a baseline: letters, digits, '.', '_' and '-', a letter first, at most 64,"
            " and nothing that reads as a commit, a file or 'latest'"
        )
    return store_path() / "baselines" / f"{name}.json"


def baseline_names() -> list[str]:
    """The names of the promoted baselines."""
    try:
        return sorted(path.stem for path in (store_path() / "baselines").glob("*.json") if is_name(path.stem))
    except OSError:
        return []


def keep_old(path: Path) -> Path | None:
    """Move a baseline that is about to be replaced into ``replaced/``; return where it is now, if there was one."""
    if not path.exists():
        return None
    stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S_%f")
    kept = path.parent / "replaced" / f"{path.stem}_{stamp}.json"
    write_file(kept, path.read_bytes())
    return kept
