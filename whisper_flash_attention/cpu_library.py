"""The compiled library: where it is, whether it serves, and for which levels of processors it is compiled.

`csrc/` needs none of torch's headers: the library is built where the package is installed (`csrc/build.py`) and may be
missing. `cpu_step.py` and `cpu_attention.py` call it, and PyTorch's operators serve where it does not.
"""

import ctypes
import functools
import importlib.util
import logging
import os
import sys
from pathlib import Path
from types import ModuleType

import torch

SWITCH = "WHISPER_FLASH_ATTENTION_COMPILED"
"""Environment variable: "off" leaves the compiled code unused."""

LEVELS = ("portable", "avx2", "avx512")
"""What the library is compiled for, as it numbers them."""

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""What it computes with, as it numbers them."""

_FUNCTIONS = {
    "wfa_has_level": [ctypes.c_int64],
    "wfa_scratch_size": [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64],
    "wfa_step": [ctypes.c_void_p, ctypes.c_void_p],
    "wfa_attention_scratch_size": [ctypes.c_void_p],
    "wfa_attend": [ctypes.c_void_p],
}

_ERRORS = {
    1: (IndexError, "a token id is not in the vocabulary"),
    2: (IndexError, "a position is not in the position embedding"),
    3: (IndexError, "a position or a slot is not in the cache"),
    4: (RuntimeError, "the scratch is too small"),
    5: (RuntimeError, "this processor lacks the level that was asked for"),
}

_logger = logging.getLogger(__name__)


def check(result: int, what: str) -> None:
    """Raise what the library's result says.

    Raises:
        IndexError: A token, a place or a position is out of range.
        RuntimeError: The level is not to be had here.
    """
    if result:
        kind, message = _ERRORS[result]
        raise kind(f"{what}: {message}.")


def why_not() -> str | None:
    """Why the compiled code serves nothing in this process; None where it serves."""
    if os.environ.get(SWITCH, "").lower() in {"off", "0", "false", "no"}:
        return f"{SWITCH} is off"
    found = _load()
    return found if isinstance(found, str) else None


def library() -> ctypes.CDLL | None:
    """The library where it serves, with the functions of `csrc/library.cpp`; None elsewhere."""
    found = None if why_not() else _load()
    return found if isinstance(found, ctypes.CDLL) else None


@functools.cache
def _load() -> ctypes.CDLL | str:
    """Load the library; a reason where that cannot be."""
    found = _find()
    if isinstance(found, str):
        _logger.warning("Computing on a CPU goes without the compiled code: %s.", found)
    return found


def _find() -> ctypes.CDLL | str:
    if sys.platform != "linux":
        return "it is there for Linux alone"
    build = _build_script()
    if not build.carries(build.LIBRARY, build.source_hash()):
        problem = "it was built from other sources" if build.LIBRARY.exists() else "it was not built"
        return f"{problem}; with a C++ compiler, run: {sys.executable} {build.__file__}"
    # Two pools of OpenMP's threads in one process slow each other: the library must find torch's.
    try:
        ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
    except OSError:
        return "PyTorch brought no libgomp.so.1, whose threads it would share"
    try:
        found = ctypes.CDLL(str(build.LIBRARY))
    except OSError as error:
        return f"it cannot be loaded: {error}"
    for name, types in _FUNCTIONS.items():
        function = getattr(found, name)
        function.argtypes, function.restype = types, ctypes.c_int64
    return found


def _build_script() -> ModuleType:
    # By its path: the folder of sources is no package, and an install has no other name for it.
    path = Path(__file__).with_name("csrc") / "build.py"
    spec = importlib.util.spec_from_file_location(f"{__package__}.csrc.build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def level() -> int:
    """The highest level that this processor has and PyTorch was not told to keep from (`ATEN_CPU_CAPABILITY`)."""
    found = _load()
    assert isinstance(found, ctypes.CDLL)
    most = {"AVX2": 1, "AVX512": 2}.get(torch.backends.cpu.get_cpu_capability(), 0)
    return max(level for level in range(most + 1) if found.wfa_has_level(level))
