"""A machine as a table."""

from collections.abc import Mapping
from typing import Any

from perf_tests.common.text import clean
from perf_tests.runs.document import mapping
from perf_tests.runs.fingerprint import FINGERPRINT, fingerprint_of
from perf_tests.runs.views import number

from .numbers import GIGABYTE


def machine_rows(machine_info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The fingerprint, then what else says what was measured where."""
    rows = [(key, _show(value)) for key, value in fingerprint_of(machine_info).items()]
    gpu, cpu = mapping(machine_info.get("gpu")), mapping(machine_info.get("cpu"))
    memory, step = number(gpu.get("memory_bytes")), mapping(machine_info.get("compiled_step"))
    more = {
        "gpu.memory_bytes": None if memory is None else f"{memory / GIGABYTE:.1f} GB",
        "gpu.driver": gpu.get("driver"),
        "gpu.mig": gpu.get("mig"),
        "compiled_step": step.get("level") or step.get("problem"),
        "cpu.count": cpu.get("count"),
        "cpu.arch": cpu.get("arch"),
        "release": machine_info.get("release"),
        "node": machine_info.get("node"),
        **{
            key: machine_info.get(key)
            for key in (
                "xformers_problem",
                "whisper_flash_attention",
                "package_hash",
                "reduced_precision_float16",
                "reduced_precision_bfloat16",
            )
        },
    }
    return rows + [(key, _show(value)) for key, value in more.items() if value is not None and key not in FINGERPRINT]


def _show(value: object) -> str:
    return "none" if value is None else clean(value)
