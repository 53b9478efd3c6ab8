"""Containers: CPU quotas, CPU affinity and memory limits, as the kernel shows them."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from perf_tests.machine import cores, watch
from perf_tests.machine.cores import Quota, available, find_quota, let_threads_fit, memory_left
from perf_tests.machine.out_of_memory import describe_out_of_memory
from perf_tests.machine.watch import StateWatch
from perf_tests.runs.device_state import Cores
from tests.make_runs import MACHINE


class Container:
    """A file system of cgroups, and the process's place in it."""

    def __init__(self, root: Path) -> None:
        self.mount, self.membership = root / "cgroup", root / "membership"
        self.mount.mkdir()

    def write(self, folder: str, **files: str) -> None:
        for name, text in files.items():
            path = self.mount / folder / name.replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Container:
    """A host with 64 cores and cgroups without limits."""
    made = Container(tmp_path)
    made.membership.write_text("0::/\n")
    monkeypatch.setattr(cores, "CGROUPS", made.mount)
    monkeypatch.setattr(cores, "MEMBERSHIP", made.membership)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {*range(64)}, raising=False)
    return made


V2 = {"cpu__max": "150000 100000"}
V1 = {"cpu__cfs_quota_us": "150000", "cpu__cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("membership", "folder", "files"),
    [
        ("0::/\n", "", V2),
        ("0::/system.slice/job.service\n", "system.slice", V2),
        ("0::/../../elsewhere\n", "", V2),
        ("4:memory:/job\n2:cpu,cpuacct:/job\n0::/\n", "cpu,cpuacct/job", V1),
        ("2:cpu,cpuacct:/docker/0123\n", "cpu", V1),  # the host's path, and the container's own cgroup as the mount
        ("1:cpu:/\n0::/job\n", "unified/job", V2),
    ],
)
def test_a_quota_is_found(membership: str, folder: str, files: dict[str, str], container: Container) -> None:
    assert available() == 64
    container.membership.write_text(membership)
    container.write(folder, **files)
    assert find_quota() == Quota(1.5, container.mount / folder)
    assert available() == 1.5


@pytest.mark.parametrize(
    "files",
    [
        {"cpu__max": "max 100000"},
        {"cpu__max": ""},
        {"cpu__max": "150000 0"},
        {"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"},
        {},
    ],
)
def test_no_quota(files: dict[str, str], container: Container) -> None:
    container.write("", **files)
    assert find_quota() is None
    assert available() == 64


def test_the_tightest_quota_and_the_affinity_hold(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    container.membership.write_text("0::/outer/inner\n")
    container.write("outer", cpu__max="300000 100000")
    container.write("outer/inner", cpu__max="800000 100000")
    assert available() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5, 7})
    assert available() == 2


@pytest.mark.parametrize(("quota", "threads"), [("150000", "1"), ("50000", "1"), ("250000", "2"), ("6400000", None)])
def test_threads_go_by_the_quota(
    quota: str, threads: str | None, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    container.write("", cpu__max=f"{quota} 100000")
    modules = {name: module for name, module in sys.modules.items() if name != "torch"}
    monkeypatch.setattr(cores, "sys", SimpleNamespace(modules=modules))
    for name in cores.THREADS:
        monkeypatch.delenv(name, raising=False)
    let_threads_fit()
    assert os.environ.get("OMP_NUM_THREADS") == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    let_threads_fit()
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_of_a_quota_others_may_use_what_is_left(container: Container) -> None:
    limited = MACHINE | {"available_cores": 1.5, "thread_count": 1, "cpu": {"count": 64}}
    assert Cores.of(limited, "cpu") == Cores(1, 0.5)
    assert Cores.of({key: limited[key] for key in ("thread_count", "cpu")}, "cpu") == Cores(1, 63)


class Host:
    """64 cores; `busy` of them are busy, none with this process, which a quota may hold back."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.now = self.throttled = 0.0
        self.seconds = [0.0] * 64

    def work(self, seconds: float, busy: int, throttled: float = 0.0) -> None:
        self.now += seconds
        for number in range(busy):
            self.seconds[number] += seconds
        self.throttled += throttled * seconds
        self.container.write("", cpu__stat=f"usage_usec 5\nthrottled_usec {int(1e6 * self.throttled)}")

    def cpu_times(self, percpu: bool = False) -> object:
        class Times(tuple):
            idle = property(lambda times: times[1])

        each = [Times((busy, self.now - busy)) for busy in self.seconds]
        return each if percpu else Times((sum(self.seconds), 64 * self.now - sum(self.seconds)))


@pytest.fixture
def host(container: Container, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(container)
    monkeypatch.setattr(watch.psutil, "cpu_times", made.cpu_times)
    monkeypatch.setattr(watch.psutil, "cpu_count", lambda: 64)
    clock = SimpleNamespace(perf_counter=lambda: made.now, process_time=lambda: 0.0)
    monkeypatch.setattr(watch, "time", clock)
    return made


def load_of(host: Host, busy: int, throttled: float = 0.0) -> float:
    with StateWatch("cpu") as state:
        host.work(10, busy, throttled)
    return state.foreign_cpu_cores


def test_load_on_other_cores_is_none_of_ours(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_of(host, 2) == pytest.approx(2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5})
    assert load_of(host, 2) == pytest.approx(1)
    assert load_of(host, 60) == pytest.approx(2)


def test_under_a_quota_load_is_what_it_takes_from_us(host: Host) -> None:
    host.container.write("", cpu__max="150000 100000")
    assert load_of(host, 60) == 0  # 4 cores are left, for a quota of 1.5
    assert load_of(host, 64) == pytest.approx(1.5)
    assert load_of(host, 3, throttled=0.25) == pytest.approx(0.25)


# Memory


@pytest.mark.parametrize(
    ("folder", "files", "left"),
    [
        ("", {"memory__max": "4096", "memory__current": "3000", "memory__stat": "anon 1\ninactive_file 500"}, 1596),
        ("", {"memory__max": "max", "memory__current": "3000"}, None),
        (
            "memory/job",
            {
                "memory__limit_in_bytes": "4096",
                "memory__usage_in_bytes": "5000",
                "memory__stat": "inactive_file 1\ntotal_inactive_file 1",
            },
            0,
        ),
    ],
)
def test_memory_is_what_the_limit_leaves(
    folder: str, files: dict[str, str], left: int | None, container: Container
) -> None:
    container.membership.write_text("4:memory:/job\n0::/\n")
    container.write(folder, **files)
    assert memory_left() == left
    told = describe_out_of_memory(MemoryError("Unable to allocate 8.0 GiB"))
    assert told is not None
    assert ("0.00 GiB free on the host" in told) is (left is not None)
