"""How many cores and how much memory this process may use: its CPU affinity, and its cgroups' limits.

Of cgroups both versions are read (the kernel's admin-guide: cgroup-v2, cgroup-v1/memory, and sched-bwc for the CPU's
quota). A limit of any cgroup between the process's own and the root holds. Imports no torch.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Quota(NamedTuple):
    """So many cores on average over a period of some 0.1 s, set on the cgroup at ``folder``."""

    cores: float
    folder: Path

    def throttled_seconds(self) -> float:
        """Core seconds for which the cgroup was held back so far: those of its threads that could have run."""
        units = {"throttled_usec": 1e6, "throttled_time": 1e9}  # version 2, version 1
        fields = [line.split() for line in _read(self.folder / "cpu.stat").splitlines()]
        return sum(int(field[1]) / units[field[0]] for field in fields if len(field) == 2 and field[0] in units)


def affinity() -> frozenset[int]:
    """The CPUs that this process may run on, by the system's numbers."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def available() -> float:
    """How many cores this process may keep busy: a container's quota may be a fraction."""
    quota, cores = find_quota(), len(affinity())
    return cores if quota is None else min(cores, quota.cores)


def find_quota() -> Quota | None:
    """The smallest quota that holds for this process."""
    found = []
    for folder in _cgroups("cpu"):
        limit, _, period = _read(folder / "cpu.max").strip().partition(" ")
        limit, period = limit or _read(folder / "cpu.cfs_quota_us"), period or _read(folder / "cpu.cfs_period_us")
        # "max", and -1 in version 1, are none.
        if limit.strip().isdecimal() and period.strip().isdecimal() and int(period) > 0:
            found.append(Quota(int(limit) / int(period), folder))
    return min(found, default=None)


def memory_left() -> int | None:
    """Bytes until the tightest memory limit, what the kernel would give back first taken for free; ``None`` without."""
    found = []
    for folder in _cgroups("memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, used = _read(folder / limit).strip(), _read(folder / usage).strip()
            if most.isdecimal() and used.isdecimal():
                found.append(max(0, int(most) - int(used) + _inactive_files(folder)))
    return min(found, default=None)


def let_threads_fit() -> None:
    """As many threads as a quota has whole cores, unless whoever started this has said how many.

    OpenMP knows of affinity and not of quotas: with a thread for each core of the host the cgroup spends its quota in
    the first part of each period, and stands still for the rest of it. Before torch is imported.
    """
    if "torch" in sys.modules or any(name in os.environ for name in THREADS):
        return
    cores = available()
    if cores < len(affinity()):
        os.environ["OMP_NUM_THREADS"] = str(max(1, int(cores)))


def _inactive_files(folder: Path) -> int:
    for line in _read(folder / "memory.stat").splitlines():
        name, _, count = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and count.isdecimal():
            return int(count)
    return 0


def _cgroups(controller: str) -> Iterator[Path]:
    """The folders of this process's cgroups that may limit ``controller``: its own, and those around it."""
    for line in _read(MEMBERSHIP).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 has no controllers there; beside version 1 it is mounted as `unified`.
        mounts = [CGROUPS / controllers, CGROUPS / controller] if controllers else [CGROUPS / "unified", CGROUPS]
        mount = next((mount for mount in mounts if mount.is_dir()), None)
        if mount is None:
            continue
        # A container may see the host's path here, and its own cgroup as the mount: then there is no such folder in it.
        folders = [mount / path.lstrip("/"), *(mount / path.lstrip("/")).parents]
        yield from (folder for folder in folders if folder.is_relative_to(mount) and ".." not in folder.parts)


def _read(path: Path) -> str:
    """A small file's text; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
