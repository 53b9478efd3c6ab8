"""Compiles the C++ of this folder for this machine's kind of processor: `python whisper_flash_attention/csrc/build.py`.

Installing the package does the same. Needs a C++ compiler and Python's standard library alone: who builds a wheel has
no PyTorch, so nothing here may import the package.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
LIBRARY = SOURCES.parent / "_cpu_library.so"
"""Where the package looks for it."""

COMPILERS = ("c++", "g++")
# The library is made on one machine and used on another, so -march=native is none of these; nor is -ffast-math, which
# sets another floating-point mode for all of the process that loads the library.
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=fast"),
    *("-fno-exceptions", "-fno-rtti"),
)
# A compiler for C++ names libstdc++ to the linker, and nothing here needs it.
LINK_FLAGS = ("-shared", "-fopenmp", "-Wl,--as-needed")
PORTABLE: dict[str, tuple[str, ...]] = {"portable": ()}
X86_LEVELS = {
    **PORTABLE,
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
}


class BuildError(RuntimeError):
    """The library cannot be built here: one line that says what is missing and what to do."""


def source_hash() -> str:
    """16 hex digits that change with any source, and with this file, which has the flags."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"), Path(__file__)], key=lambda path: path.name):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def carries(library: Path, source_hash: str) -> bool:
    """Whether ``library`` is there and was built from the sources with this hash."""
    marker = f"whisper_flash_attention sources {source_hash}"
    return library.is_file() and marker.encode() in library.read_bytes()


def build(library: Path = LIBRARY, *, flags: Sequence[str] = ()) -> Path:
    """Build the library, unless it is there and was built from these sources.

    Args:
        library: The file to make; a process that has an old one loaded keeps it.
        flags: More flags for the compiler. With any, the library is built whatever is there.

    Returns:
        ``library``.

    Raises:
        BuildError: There is no compiler, it failed, or the file cannot be written.
    """
    wanted = source_hash()
    if not flags and carries(library, wanted):
        return library
    if sys.platform != "linux":
        raise BuildError("the compiled code is there for Linux alone; everything works without it")
    compiler = _find_compiler()
    levels, told = PORTABLE, [f'-DSOURCE_HASH="{wanted}"']
    if platform.machine() == "x86_64":
        levels, told = X86_LEVELS, [*told, "-DHAS_X86_LEVELS"]
    units = {"library": ("library.cpp", told)}
    for level, own in levels.items():
        units |= {f"{name}_{level}": (f"{name}.cpp", [f"-DLEVEL={level}", *own]) for name in ("step", "attention")}
    try:
        with tempfile.TemporaryDirectory(prefix=f"{library.stem}.", dir=library.parent) as name:
            folder = Path(name)
            objects = [str(folder / f"{unit}.o") for unit in units]
            commands = [
                [*compiler, *FLAGS, *own, *flags, "-c", str(SOURCES / source), "-o", target]
                for (source, own), target in zip(units.values(), objects, strict=True)
            ]
            _run(commands)
            linked = folder / library.name
            _run([[*compiler, *LINK_FLAGS, *flags, *objects, "-o", str(linked)]])
            # Two pools of OpenMP's threads in one process slow each other, and clang brings another than PyTorch's.
            if b"libgomp.so.1" not in linked.read_bytes():
                raise BuildError(f"{compiler[0]} links another OpenMP than PyTorch's libgomp; name GCC's g++ in $CXX")
            linked.replace(library)
    except OSError as error:
        raise BuildError(f"{error.filename}: {error.strerror}; the compiled code could not be built") from None
    return library


def _find_compiler() -> list[str]:
    given = shlex.split(os.environ.get("CXX", ""))
    if given:
        return given
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise BuildError(f"no C++ compiler: none of {', '.join(COMPILERS)} is on PATH; install one, or name it in $CXX")


def _run(commands: Sequence[Sequence[str]]) -> None:
    """Run compilers side by side, to the end of the last."""
    processes = [subprocess.Popen(each, stderr=subprocess.PIPE, text=True, errors="replace") for each in commands]
    said = [process.communicate()[1] for process in processes]
    for command, process, text in zip(commands, processes, said, strict=True):
        if process.returncode:
            lines = [line.strip() for line in text.splitlines() if line.strip()][:3]
            words = "; ".join(lines) or f"exit code {process.returncode} and no word"
            raise BuildError(f"{command[0]} could not build the compiled code: {words}")


if __name__ == "__main__":
    try:
        print(build())
    except BuildError as error:
        sys.exit(str(error))
