"""Where a round's time went: a trace for Perfetto, and operators (on CUDA kernels) by their share."""

from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from perf_tests.matrix.cases import Case
from perf_tests.matrix.components import function_of
from perf_tests.subjects.subject import Subject

# Shares that are recorded; what is below them adds up to little.
LARGEST = 20


def profile_round(subject: Subject, folder: Path, case: Case, floor_seconds: float | None = None) -> dict[str, float]:
    """Profile one round of a warmed-up ``subject``.

    Writes ``<case>.trace.json.gz``, which https://ui.perfetto.dev opens, and ``<case>.txt``, a table, into
    ``folder``. Where there is a floor, the table says how much of the time that is: the rest is what to look for.

    Returns:
        Name and fraction of the largest ones. On a CPU of the operators' own time, that of what they call left
        out; on CUDA of the kernels' time on the device.
    """
    on_cuda = subject.place.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as profiler:
        subject.run_round()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{function_of(case)}-{case.id}"
    profiler.export_chrome_trace(str(folder / f"{name}.trace.json.gz"))
    seconds: dict[str, float] = {}
    calls: dict[str, int] = {}
    for event in profiler.key_averages():
        if on_cuda and event.device_type.name != "CUDA":
            continue
        time = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        if time > 0:
            seconds[event.key] = seconds.get(event.key, 0.0) + time / 1e6
            calls[event.key] = calls.get(event.key, 0) + event.count
    total = sum(seconds.values())
    largest = sorted(seconds, key=lambda key: -seconds[key])[:LARGEST]
    floor = "" if floor_seconds is None else f"; at this machine's limits {floor_seconds:.6f} s"
    lines = [
        f"{case.id}: {total:.6f} s in {sum(calls.values())} calls{floor}",
        f"{'share':>7} {'seconds':>10} {'calls':>7}  name",
    ]
    lines += [f"{seconds[key] / total:7.1%} {seconds[key]:10.6f} {calls[key]:7}  {key}" for key in largest]
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {key: round(seconds[key] / total, 5) for key in largest}
