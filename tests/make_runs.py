"""Runs for the gate's tests, as the suite saves them: every key of the schema, and rounds from a seeded generator."""

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perf_tests.matrix import cases
from perf_tests.matrix.cases import Case
from perf_tests.runs.journal import Session
from perf_tests.runs.schema import SCHEMA_VERSION, TIMED_ONLY
from perf_tests.runs.statistics import CONTROL_WEIGHT

MACHINE = {
    "node": "here",
    "system": "Linux",
    "python_version": "3.11.7",
    "cpu": {"brand_raw": "A CPU", "count": 2},
    "gpu": None,
    "torch": "2.13.0+cpu",
    "cuda": None,
    "transformers": "5.23.0",
    "xformers": None,
    "xformers_problem": None,
    "whisper_flash_attention": "0.1.0",
    "package_path": "/checkout/whisper_flash_attention",
    "package_hash": "0123456789ab",
    "compiled_step": {"level": "avx2", "problem": None},
    "thread_count": 2,
    "available_cores": 2,
    "openmp_waiting": "GOMP_SPINCOUNT=1000",
    "tf32_matmul": False,
    "tf32_cudnn": True,
    "reduced_precision_float16": True,
    "reduced_precision_bfloat16": True,
    "limits": None,
}
CELL = ("tiny.en", 4, "single")
ORIGINAL, FLASH = (f"test_generate[tiny.en-4-single-{name}]" for name in ("original", "flash"))
SECONDS = {"original": 0.4, "eager": 0.5, "flash": 0.2}


def make_bench(case: Case, rng: random.Random, *, rounds: int = 20, spread: float = 0.01) -> dict[str, Any]:
    """A benchmark whose pairs vary by `spread`; the machine's drift moves both rounds of a pair."""
    drift = [1 + 0.05 * rng.random() for _ in range(rounds)]
    data = [SECONDS[case.implementation] * slow * rng.gauss(1, spread) for slow in drift]
    control = None
    if case.implementation == "flash":
        control = {
            "implementation": "original",
            "rounds_seconds": [SECONDS["original"] * slow * rng.gauss(1, spread) for slow in drift],
            "position": "before",
        }
    setting = cases.SETTINGS[case.setting]
    return {
        "name": f"test_generate[{case.id}]",
        "fullname": f"perf_tests/test_generate.py::test_generate[{case.id}]",
        "group": case.cell.id,
        "params": case._asdict(),
        "stats": {"data": data, "median": sorted(data)[rounds // 2], "rounds": rounds},
        "extra_info": {
            "schema_version": SCHEMA_VERSION,
            "case_definition": f"def-{case.cell.id}",
            "device": "cpu",
            "dtype": "float32",
            "batch_size": setting.batch_size,
            "new_tokens": setting.new_tokens,
            "weights": "random",
            "audio": "synthetic",
            "parameter_count": 37_760_256,
            "attention_backend": {"encoder": "sdpa"},
            "model_memory_bytes": 151_041_024,
            "peak_memory_allocated_bytes": 179_661_856,
            "peak_memory_reserved_bytes": None,
            "aten_op_count": 5451,
            "flop_count": 42_183_462_912,
            "kernel_launch_count": None,
            "host_sync_count": None,
            "op_counts": {"aten.mm": 5000, "aten.view": 451},
            "op_shares": None,
            "control": control,
            "yardstick": None,
            "speedup": None,
            "process_rounds": None,
            "parity": {
                "max_abs_error": 6e-6,
                "original_max_abs_error": 0.0,
                "bound": 9.8e-5,
                "reference_max_abs": 4.9,
                "reference": "original",
                "tokens_equal": True,
                "first_difference": None,
                "rows_different": 0,
                "token_regret": None,
                "token_regret_bound": None,
            },
            "tokens_per_second": 50.0,
            "real_time_factor": 0.02,
            "limit_bytes": None,
            "limit_flops": None,
            "floor_seconds": None,
            "fraction_of_limit": None,
            "word_error_rate": None,
            "device_state": {
                "load_average": 1.0,
                "foreign_cpu_cores": 0.05,
                "cpu_frequency_hz": None,
                "rounds": {
                    "begin_seconds": [0.05 * index for index in range(rounds)],
                    "end_seconds": [0.05 * index + 0.04 for index in range(rounds)],
                    "foreign_cpu_cores": [0.05] * rounds,
                },
                "gpu": None,
            },
            "pass_seconds": {"building the model": 0.5, "timing": 12.0},
        },
    }


def make_gpu_samples(**values: list[int | None]) -> dict[str, Any]:
    """`device_state.gpu` of three samples, of a GPU at rest but for `values`."""
    calm = {"sm_clock_hz": 1_980_000_000, "temperature_celsius": 40, "throttle_reasons": 0, "foreign_processes": 0}
    samples = {key: [value] * 3 for key, value in calm.items()}
    return {"at_seconds": [0.0, 0.1, 0.2], **samples, **values, "sampler_cpu_seconds": 0.001}


def make_run(
    chosen: Sequence[Case] = (Case(*CELL, "original"), Case(*CELL, "flash")),
    *,
    seed: int = 0,
    rounds: int = 20,
    commit: str = "a" * 40,
) -> dict[str, Any]:
    """A run of `chosen`, all passed; unlike seeds give another session's rounds, of a package that does the same."""
    rng = random.Random(seed)
    benches = [make_bench(case, rng, rounds=rounds) for case in chosen]
    return {
        "machine_info": copy.deepcopy(MACHINE) | {"package_hash": f"{seed:012x}"},
        "commit_info": {"id": commit, "dirty": False, "time": "2026-11-24T10:41:23+00:00"},
        "datetime": f"2026-11-24T10:{seed % 60:02}:02+00:00",
        "version": "5.3.1",
        "benchmarks": benches,
        "perf_cases": [{"id": bench["name"], "outcome": "passed", "reason": None, "session": 0} for bench in benches],
        "perf_sessions": [make_session(commit)],
    }


def make_session(commit: str | None = None) -> dict[str, Any]:
    """An entry of a run's `perf_sessions`."""
    return Session(1.0, 1, commit, "a machine", "A CPU", 2, None)._asdict()


def make_cuda(run: dict[str, Any]) -> dict[str, Any]:
    """The same run, as if from a GPU."""
    run["machine_info"] |= {
        "gpu": {"name": "A GPU", "compute_capability": "9.0"},
        "cuda": "12.8",
        "compiled_step": None,
    }
    for bench in run["benchmarks"]:
        bench["extra_info"] |= {
            "device": "cuda",
            "dtype": "float16",
            "peak_memory_reserved_bytes": 400 * 1024 * 1024,
            "kernel_launch_count": 900,
            "host_sync_count": 30,
        }
    return run


def make_plain(run: dict[str, Any]) -> dict[str, Any]:
    """The same run as pytest-benchmark without the suite would have saved it."""
    del run["perf_cases"]
    known = ("node", "system", "python_version", "cpu")
    run["machine_info"] = {key: run["machine_info"][key] for key in known}
    for bench in run["benchmarks"]:
        bench["extra_info"] = {}
    return run


def make_counted(run: dict[str, Any]) -> dict[str, Any]:
    """The same run as `--perf-counters-only` would have saved it."""
    measured = {bench["name"]: bench for bench in run["benchmarks"]}
    for entry in run["perf_cases"]:
        if (bench := measured.get(entry["id"])) is not None:
            entry |= {"params": bench["params"], "extra_info": bench["extra_info"] | dict.fromkeys(TIMED_ONLY)}
    run["benchmarks"] = []
    return run


def bench_of(run: dict[str, Any], name: str) -> dict[str, Any]:
    return next(bench for bench in run["benchmarks"] if bench["name"] == name)


def info_of(run: dict[str, Any], name: str = FLASH) -> dict[str, Any]:
    counted = (entry for entry in run["perf_cases"] if entry["id"] == name and "extra_info" in entry)
    info: dict[str, Any] = (next(counted, None) or bench_of(run, name))["extra_info"]
    return info


def slow_down(run: dict[str, Any], factor: float, name: str = FLASH) -> None:
    """Multiply a case's own rounds, and not its control's."""
    stats = bench_of(run, name)["stats"]
    stats["data"] = [seconds * factor for seconds in stats["data"]]


def set_timer(run: dict[str, Any], timer: object) -> None:
    """Let pytest-benchmark have timed the run by this clock."""
    for bench in run["benchmarks"]:
        bench["options"] = {"timer": timer}


def add_yardstick(run: dict[str, Any], *, as_slow_as: float = 1.0, version: int = 1, name: str = FLASH) -> None:
    """Give a case's rounds a yardstick as steady as its control, slowed so that it makes up for a slower flash."""
    info = info_of(run, name)
    control = info["control"]["rounds_seconds"]
    factor = as_slow_as ** (1 / (1 - CONTROL_WEIGHT))
    parts = {"encoder": [0.3 * factor * s for s in control], "decoding": [0.25 * factor * s for s in control]}
    info["yardstick"] = {"version": version, "rounds_seconds": parts}


def disturb(run: dict[str, Any], *, cores: float = 1.0, share: float = 1.0, name: str = FLASH) -> dict[str, Any]:
    """Let others have kept so many cores busy during the first ``share`` of a case's rounds."""
    loads = info_of(run, name)["device_state"]["rounds"]["foreign_cpu_cores"]
    count = round(share * len(loads))
    loads[:count] = [cores] * count
    return run


def set_outcome(run: dict[str, Any], name: str, outcome: str, reason: str | None) -> None:
    """Let a case end so, with nothing measured."""
    run["benchmarks"] = [bench for bench in run["benchmarks"] if bench["name"] != name]
    entry = next(entry for entry in run["perf_cases"] if entry["id"] == name)
    entry |= {"outcome": outcome, "reason": reason}


def remove(run: dict[str, Any], name: str) -> None:
    """Let a case never have been selected."""
    run["benchmarks"] = [bench for bench in run["benchmarks"] if bench["name"] != name]
    run["perf_cases"] = [entry for entry in run["perf_cases"] if entry["id"] != name]


def save(run: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run), encoding="utf-8")
    return path
