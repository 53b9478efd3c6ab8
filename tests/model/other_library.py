"""pytest plugin: the compiled code is that of the library `$OTHER_LIBRARY`."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from whisper_flash_attention import cpu_library

_build_script = cpu_library._build_script


def build_script_of_the_other() -> ModuleType:
    build = _build_script()
    build.LIBRARY = Path(os.environ["OTHER_LIBRARY"])
    return build


cpu_library._build_script = build_script_of_the_other


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which libraries of the kind the process has used."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    names = {line.split()[-1] for line in lines if line.endswith(".so") and "_cpu_library" in line}
    terminalreporter.write_line(f"compiled code: {' '.join(sorted(names))}")
