"""The tests of the compiled code once more, by libraries that were compiled to find faults."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from whisper_flash_attention import cpu_library

ROOT = Path(__file__).parents[2]
STEP = ("tests/model/test_cpu_step.py", "tests/model/test_cpu_step_threads.py")
ATTENTION = "tests/model/test_cpu_attention.py"
SANITIZERS = ("libasan.so", "libubsan.so")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the compiled step is there for Linux alone"),
    pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++ here"),
    pytest.mark.skipif(cpu_library.SWITCH in os.environ, reason=f"{cpu_library.SWITCH} is set"),
]


def run_tests(tests: tuple[str, ...], library: Path, *flags: str, **environment: str) -> None:
    """Build the library with more flags and have it serve the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "g++")
        cpu_library._build_script().build(library, flags=["-O1", *flags])
    options = ["-q", "--capture=sys", "-p", "no:cacheprovider", "-p", "tests.model.other_library"]
    options += ["-k", "not forked"]  # in processes of their own, which the package's library serves
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *tests, *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OTHER_LIBRARY": str(library), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"compiled code: {library}\n" in done.stdout
    assert " skipped" not in done.stdout


def test_threads_that_come_at_any_time_change_nothing(tmp_path: Path) -> None:
    """Each sleeps for a while of its own before every barrier."""
    run_tests(STEP, tmp_path / "delayed_cpu_library.so", "-DRANDOM_DELAYS")


def test_memory_is_its_own_and_nothing_is_undefined(tmp_path: Path) -> None:
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in SANITIZERS
    ]
    if not all(map(os.path.isabs, found)):
        pytest.skip("this g++ has no sanitizers")
    run_tests(
        (*STEP, ATTENTION),
        tmp_path / "sanitized_cpu_library.so",
        *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"),
        LD_PRELOAD=":".join(found),
        ASAN_OPTIONS="detect_leaks=0",  # Python's own
    )
