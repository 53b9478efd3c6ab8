"""What the run's ``machine_info`` says about the GPU, the libraries and torch's switches.

And how OpenMP's threads wait for each other, which has to be said before torch is imported.
"""

import functools
import importlib
import os
import platform
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from perf_tests.common.package_hash import hash_package

from . import cores

# libgomp's variables for how long a thread spins before it sleeps. By default that is for milliseconds: a thread whose
# core another process has taken is waited for by one that keeps the other core busy, and the original's round takes
# 3.0 times as long beside a single busy process, flash's 2.3 times. After 1,000 turns, some microseconds, it is 1.6 and
# 1.8 times, and their corrected ratio stays what it was. On a calm machine flash takes 2 % longer. (2 cores of an AMD
# EPYC; docs/gate.md has the figures.)
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SPIN_COUNT = "1000"


def let_threads_sleep() -> None:
    """Let OpenMP's threads sleep soon, unless whoever started this has said how they should wait."""
    if "torch" not in sys.modules and describe_waiting() is None:
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


def describe_waiting() -> str | None:
    """How OpenMP's threads wait, as the environment says it; ``None`` where it leaves that to libgomp."""
    return next((f"{name}={os.environ[name]}" for name in WAITING if name in os.environ), None)


def describe_machine(device: str) -> dict[str, Any]:
    """Describe the machine as seen from ``device``: the suite's keys (``schema.MACHINE_INFO``). Imports torch."""
    import torch

    matmul = torch.backends.cuda.matmul
    xformers = find_xformers(device)
    return {
        "gpu": _describe_gpu(device) if device.startswith("cuda") else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": version_of("transformers"),
        "xformers": xformers.version,
        "xformers_problem": xformers.problem,
        **describe_package(),
        "compiled_step": None if device.startswith("cuda") else describe_compiled_step(),
        "thread_count": torch.get_num_threads(),
        "available_cores": round(cores.available(), 3),
        "openmp_waiting": describe_waiting(),
        "tf32_matmul": bool(matmul.allow_tf32),
        "tf32_cudnn": bool(torch.backends.cudnn.allow_tf32),
        "reduced_precision_float16": bool(matmul.allow_fp16_reduced_precision_reduction),
        "reduced_precision_bfloat16": bool(matmul.allow_bf16_reduced_precision_reduction),
    }


def describe_cpu() -> str:
    """The CPU's name, where the system tells it quickly, and how many cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    usable = cores.available()
    return f"{name}, {usable:.3g} core{'' if usable == 1 else 's'}"


class XFormers(NamedTuple):
    """xFormers as it serves: ``version`` where its kernels work, else ``problem`` where they should have."""

    version: str | None
    problem: str | None

    def describe(self) -> str:
        """A few words for the header."""
        if self.version is not None:
            return f"xformers {self.version}"
        return "xformers unusable" if self.problem else "xformers unused on a CPU"


@functools.cache
def find_xformers(device: str) -> XFormers:
    """Try xFormers on ``device``: an installed version says nothing of one built for another CUDA. Imports torch.

    On a CPU it has no kernel, so whether it is installed makes no difference there.
    """
    from whisper_flash_attention import xformers_backend

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ops = xformers_backend.load(device.partition(":")[0])
    if ops is None:
        return XFormers(None, str(caught[-1].message) if caught else None)
    package = ops.attention.__name__.partition(".")[0]
    version = version_of(package) or "of unknown version"
    return XFormers(version if package == "xformers" else f"{package} {version}", None)


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, without importing it; ``None`` where it is missing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def describe_package() -> dict[str, str]:
    """The package that the cases import: the checkout's, maybe not the installed one."""
    import whisper_flash_attention

    folder = Path(str(whisper_flash_attention.__file__)).parent
    return {
        "whisper_flash_attention": whisper_flash_attention.__version__,
        "package_path": str(folder),
        "package_hash": hash_package(folder),
    }


def describe_compiled_step() -> dict[str, str | None] | None:
    """How the package's compiled step serves; ``None`` where its commit has none."""
    for name in ("cpu_library", "cpu_step"):  # the latter in the first commits that had it
        try:
            library: Any = importlib.import_module(f"whisper_flash_attention.{name}")
        except ImportError:
            continue
        problem = library.why_not()
        return {"level": None if problem else library.LEVELS[library.level()], "problem": problem}
    return None


def _describe_gpu(device: str) -> dict[str, Any]:
    import torch

    from .nvml import query_nvml

    properties = torch.cuda.get_device_properties(torch.device(device))
    nvml = query_nvml(device)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "driver": nvml.driver,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "mig": nvml.mig,
    }
