"""Running the suite in a process of its own, as a user would."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run_suite(*arguments: str, plugins: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `pytest perf_tests` from the repository's root with `arguments`; one thread, no network, no warning."""
    command = [sys.executable, "-m", "pytest", "perf_tests", "-p", "no:cacheprovider", "-o", "filterwarnings=error"]
    for plugin in plugins:
        command += ["-p", f"tests.plugins.{plugin}"]
    return run([*command, *arguments], **environment)


def run(command: list[str], cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `command` from the repository's root, or from `cwd`."""
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "160", "PYTHONPATH": str(ROOT)}
    # Hypothesis's plugin imports all of Hypothesis at the end of any session: a second for each run.
    settings["PYTEST_ADDOPTS"] = "-p no:hypothesispytest"
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return subprocess.run(
        command,
        cwd=cwd,
        env=variables | settings | environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
        # A shell's background jobs ignore Ctrl-C, and so would all that they start.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def read_run(path: Path) -> dict[str, Any]:
    """A saved run; of a folder the only one in it."""
    if path.is_dir():
        (path,) = path.rglob("*.json")
    return json.loads(path.read_text())
