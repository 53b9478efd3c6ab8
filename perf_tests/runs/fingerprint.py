"""What two runs must share for their times to be comparable: the machine's fingerprint.

Nothing else of ``machine_info`` refuses: not the commit, not this package's version, not clocks.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from perf_tests.common.text import clean

# Paths into ``machine_info``; ``--allow`` takes these names.
FINGERPRINT = (
    "gpu.name",
    "gpu.compute_capability",
    "cpu.brand_raw",
    "thread_count",
    "openmp_waiting",
    "system",
    "python_version",
    "torch",
    "cuda",
    "transformers",
    "xformers",
    "tf32_matmul",
    "tf32_cudnn",
)

# Of these, what exact counters and an allocator's peak do not depend on, in runs that were not timed.
SPEED_ONLY = ("cpu.brand_raw", "python_version")

# What a package's compiled step did, which is the package's and not the machine's: see `step_differences`.
STEP = "compiled_step"

Scalar = str | int | float | bool | None


class Difference(NamedTuple):
    """A key in which BASE and HEAD differ, and both values."""

    key: str
    base: object
    head: object

    def __str__(self) -> str:
        return f"{self.key} ({_show(self.base)} / {_show(self.head)})"


def fingerprint_of(machine_info: Mapping[str, Any]) -> dict[str, Scalar]:
    """The fingerprint's keys and values; ``None`` where the machine has no such thing (a GPU, xFormers)."""
    return {key: _lookup(machine_info, key) for key in FINGERPRINT}


def differences(
    base: Mapping[str, Any], head: Mapping[str, Any], *, recorded_only: bool = False
) -> tuple[Difference, ...]:
    """The fingerprint's keys in which two ``machine_info`` differ.

    With ``recorded_only``, keys that either side lacks are left out: plain pytest-benchmark knows but a few.
    """
    ours, theirs = fingerprint_of(base), fingerprint_of(head)
    machines = tuple(
        Difference(key, ours[key], theirs[key])
        for key in FINGERPRINT
        # A type counts: 1 and true are equal in Python, and are different things in a JSON.
        if (type(ours[key]), ours[key]) != (type(theirs[key]), theirs[key])
        and not (recorded_only and None in (ours[key], theirs[key]))
    )
    return (*machines, *step_differences(base, head))


def step_differences(base: Mapping[str, Any], head: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The compiled step, where a side has one that did not serve, or both have it on unlike levels.

    What would be compared then is not what the commits differ in. A commit without one is judged as it is.
    """
    sides = [side if isinstance(side, Mapping) else None for side in (base.get(STEP), head.get(STEP))]
    shown = [None if side is None else side.get("level") or f"did not serve: {side.get('problem')}" for side in sides]
    unserved = any(side is not None and side.get("level") is None for side in sides)
    unlike = None not in sides and shown[0] != shown[1]
    return (Difference(STEP, *shown),) if unserved or unlike else ()


def without(found: Collection[Difference], allow: Collection[str]) -> tuple[Difference, ...]:
    """The differences that were not allowed."""
    return tuple(difference for difference in found if difference.key not in allow)


def describe_machine(
    machine_info: Mapping[str, Any], libraries: Collection[str] = ("torch", "transformers", "xformers")
) -> str:
    """``AMD EPYC, 2 threads, torch 2.13.0+cpu, transformers 5.23.0``."""
    known = fingerprint_of(machine_info)
    parts = [str(known["gpu.name"] or known["cpu.brand_raw"] or "a machine without a name")]
    if known["thread_count"] is not None and not known["gpu.name"]:
        parts.append(f"{known['thread_count']} threads")
    parts += [f"{name} {known[name]}" for name in libraries if known[name]]
    return clean(", ".join(parts))


def digest(fingerprint: Mapping[str, Scalar]) -> str:
    """A short hash of a fingerprint: the name of its calibration."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:12]


def _lookup(machine_info: Mapping[str, Any], path: str) -> Scalar:
    value: object = machine_info
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value, sort_keys=True)


def _show(value: object) -> str:
    return "none" if value is None else clean(value, 120)
