"""The build of the compiled step: when it compiles, with which flags, and what it leaves behind."""

import importlib.util
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CSRC = Path(__file__).parents[2] / "whisper_flash_attention" / "csrc"
# Stands for a compiler. What it makes has its command line in it, and those of the objects that it links.
COMPILER = """
import os
import sys
from pathlib import Path
*arguments, made = sys.argv[1:]
said = " ".join(arguments).replace('-DSOURCE_HASH="', "whisper_flash_attention sources ")
said += os.environ.get("OPENMP", "libgomp.so.1")
Path(made).write_text("\\n".join([said, *(Path(each).read_text() for each in arguments if each.endswith(".o"))]))
"""
# What a library does to the process that loads it, and who is loaded with it.
LOADER = """
import ctypes, sys
from pathlib import Path
library = ctypes.CDLL(sys.argv[1])
library.wfa_source_hash.restype = ctypes.c_char_p
print(library.wfa_source_hash().decode())
assert float("1e-310") / 2 != 0, "subnormal numbers are flushed to zero"
assert "libstdc++" not in Path("/proc/self/maps").read_text()
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The value of CXX that the build starts with."""
    script = tmp_path / "compiler.py"
    script.write_text(COMPILER)
    value = shlex.join([sys.executable, "-S", str(script)])
    monkeypatch.setenv("CXX", value)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    return value


@pytest.fixture
def build(tmp_path: Path) -> Any:
    """`csrc/build.py` as a module, among copies of the sources."""
    folder = shutil.copytree(CSRC, tmp_path / "package" / "csrc", ignore=shutil.ignore_patterns("__pycache__"))
    spec = importlib.util.spec_from_file_location("build", folder / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def change(build: Any) -> None:
    path = build.SOURCES / "library.h"
    path.write_text(path.read_text() + " ")


@pytest.mark.usefixtures("compiler")
def test_a_library_is_built_once(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not build.carries(build.LIBRARY, build.source_hash())
    assert build.build() == build.LIBRARY
    assert build.LIBRARY.relative_to(build.SOURCES.parent) == Path("_cpu_library.so")
    assert build.carries(build.LIBRARY, build.source_hash())
    monkeypatch.setenv("CXX", "/bin/false")
    assert build.build() == build.LIBRARY


@pytest.mark.usefixtures("compiler")
def test_another_openmp_than_pytorchs_is_refused(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMP", "libomp.so.5")
    with pytest.raises(build.BuildError, match=r"another OpenMP than PyTorch's libgomp; name GCC's g\+\+ in \$CXX"):
        build.build()
    assert not build.LIBRARY.exists()


@pytest.mark.usefixtures("compiler")
def test_a_changed_character_builds_another(build: Any) -> None:
    library, before = build.build(), build.source_hash()
    change(build)
    assert build.source_hash() != before
    assert not build.carries(library, build.source_hash())
    with library.open() as loaded:
        assert build.carries(build.build(), build.source_hash())
        assert before in loaded.read()  # who had opened the old one keeps it


@pytest.mark.usefixtures("compiler")
def test_more_flags_always_build(build: Any) -> None:
    library = build.build()
    assert build.build(flags=["-DRANDOM_DELAYS"]) == library
    assert library.read_text().count("-DRANDOM_DELAYS") == 1 + 7  # linked, and each unit compiled


@pytest.mark.usefixtures("compiler")
def test_each_level_has_its_own_flags_and_none_is_this_machines(build: Any) -> None:
    link, *units = build.build().read_text().splitlines()
    assert "-Wl,--as-needed" in link
    flags = {"-DLEVEL=portable": 0, "-DLEVEL=avx2": 3, "-DLEVEL=avx512": 7}
    levels = [flag for unit in units for flag in unit.split() if flag.startswith("-DLEVEL=")]
    assert levels == [level for level in flags for _ in range(2)]
    assert [unit.count(" -m") for unit in units] == [0, *(flags[level] for level in levels)]
    assert [" -DHAS_X86_LEVELS " in unit for unit in units] == [True, *(False for _ in levels)]
    given = " ".join([link, *units])
    for refused in ("-march", "-mtune", "fast-math", "-Ofast", "-Werror", "unsafe"):
        assert refused not in given


@pytest.mark.usefixtures("compiler")
def test_other_processors_have_the_portable_level(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    made = build.build().read_text()
    assert made.count("-DLEVEL=") == made.count("-DLEVEL=portable") == 2
    assert " -m" not in made
    assert "HAS_X86_LEVELS" not in made


@pytest.mark.parametrize(
    ("compiler", "words"),
    [
        ("/bin/false", "/bin/false could not build the compiled code: exit code 1"),
        ("/nowhere/c++ -x", "/nowhere/c++: No such file or directory"),
        ("sh -c 'printf \"1\\n2\\n3\\n4\" >&2; exit 3'", "sh could not build the compiled code: 1; 2; 3"),
        ("", "no C++ compiler: none of c++, g++ is on PATH; install one, or name it in $CXX"),
    ],
)
def test_what_fails_is_one_line_and_leaves_nothing(
    compiler: str, words: str, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.LIBRARY.write_text("old")
    beside = {*build.LIBRARY.parent.iterdir()}
    monkeypatch.setenv("CXX", compiler)
    if not compiler:
        monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(build.BuildError) as caught:
        build.build()
    assert str(caught.value).startswith(words)
    assert len(str(caught.value).splitlines()) == 1
    assert {*build.LIBRARY.parent.iterdir()} == beside
    assert build.LIBRARY.read_text() == "old"


def test_a_folder_that_is_not_there_is_said(build: Any, compiler: str, tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match="No such file or directory"):
        build.build(tmp_path / "nowhere" / "library.so")


def test_another_system_is_told_so(build: Any, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(build.BuildError, match="for Linux alone"):
        build.build()


@pytest.mark.skipif(sys.platform != "linux", reason="the compiled step is there for Linux alone")
def test_the_script_prints_the_path_or_one_line(build: Any, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(build.SOURCES / "build.py")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{build.LIBRARY}\n", "")
    change(build)
    monkeypatch.setenv("CXX", "/bin/false")
    done = run()
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++"))), reason="there is no C++ compiler here")
@pytest.mark.skipif(sys.platform != "linux", reason="the compiled step is there for Linux alone")
def test_what_is_compiled_loads_and_leaves_the_process_as_it_was(build: Any, tmp_path: Path) -> None:
    library = build.build(tmp_path / "library.so")
    assert build.carries(library, build.source_hash())
    command = [sys.executable, "-c", LOADER, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{build.source_hash()}\n", "")
