"""pytest plugin, also imported for commands: the user has no name and no home, as under `docker run --user 54321`."""

import os
import pwd
from typing import NoReturn

NAMES = ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "HF_HOME", "PERF_STORE")
for name in NAMES:
    os.environ.pop(name, None)


def getpwuid(uid: int) -> NoReturn:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


pwd.getpwuid = getpwuid
