"""Runs that say nothing of each other: of unlike machines, work or clocks, or of one package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.make_runs import (
    FLASH,
    info_of,
    make_cuda,
    save,
    set_outcome,
    set_timer,
)

from .conftest import Outcome, refused

Compare = Callable[..., Outcome]
Run = dict[str, Any]


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("gpu.name", {"gpu": {"name": "Another GPU", "compute_capability": "9.0"}}),
        ("gpu.compute_capability", {"gpu": {"name": "A GPU", "compute_capability": "8.0"}}),
        ("cpu.brand_raw", {"cpu": {"brand_raw": "B CPU"}}),
        ("thread_count", {"thread_count": 4}),
        ("system", {"system": "Darwin"}),
        ("python_version", {"python_version": "3.12.1"}),
        ("torch", {"torch": "2.12.0"}),
        ("cuda", {"cuda": "13.0"}),
        ("transformers", {"transformers": "5.17.0"}),
        ("xformers", {"xformers": "0.0.35"}),
        ("tf32_matmul", {"tf32_matmul": True}),
        ("tf32_cudnn", {"tf32_cudnn": False}),
    ],
)
def test_unlike_machines(key: str, change: Run, compare: Compare, base: Run, head: Run) -> None:
    make_cuda(base)
    make_cuda(head)["machine_info"] |= change
    outcome = compare(base, head)
    refused(outcome, f"unlike runs: {key} (", f"--allow {key}")
    assert outcome.err.count("--allow ") == 1
    allowed = compare(base, head, "--allow", key)
    assert allowed.code == 0
    assert f"compared although the machines differ: {key}" in allowed.out
    exact = compare(base, head, "--only", "counters", "--only", "memory")
    assert exact.code == 0
    assert key in exact.out


UNSERVED = {"level": None, "problem": "it was not built"}


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (({"level": "avx2", "problem": None}, {"level": "avx512", "problem": None}), "(avx2 / avx512)"),
        (({"level": "avx2", "problem": None}, UNSERVED), "(avx2 / did not serve: it was not built)"),
        ((UNSERVED, UNSERVED), "(did not serve: it was not built / did not serve: it was not built)"),
        ((None, UNSERVED), "(none / did not serve: it was not built)"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_compiled_step_that_did_not_serve_alike(
    steps: tuple[Run | None, Run | None], words: str, turned: bool, compare: Compare, base: Run, head: Run
) -> None:
    """Nor do exact numbers compare then: they are another step's."""
    for run, step in zip((head, base) if turned else (base, head), steps, strict=True):
        run["machine_info"]["compiled_step"] = step
    words = words if not turned else f"({' / '.join(reversed(words[1:-1].split(' / ')))})"
    refused(compare(base, head), f"unlike runs: compiled_step {words}; --allow compiled_step compares")
    refused(compare(base, head, "--only", "counters"), "compiled_step")
    assert compare(base, head, "--allow", "compiled_step").code == 0


def test_a_commit_without_a_compiled_step(compare: Compare, base: Run, head: Run) -> None:
    del base["machine_info"]["compiled_step"]
    outcome = compare(base, head)
    assert outcome.code == 0
    assert "BASE's commit has no compiled step, the other's has one" in outcome.out


def test_nothing_else_refuses(compare: Compare, base: Run, head: Run) -> None:
    head["machine_info"] |= {
        "node": "there",
        "whisper_flash_attention": "0.2.0",
        "reduced_precision_float16": False,
        "release": "6.1",
    }
    head["machine_info"]["cpu"]["hz_actual"] = [1, 0]
    head["commit_info"] = {"id": "b" * 40, "dirty": True}
    assert compare(base, head).code == 0


def test_a_cpu_and_a_gpu(compare: Compare, base: Run, head: Run) -> None:
    for bench in make_cuda(head)["benchmarks"]:
        bench["extra_info"]["case_definition"] += "-cuda"
    refused(compare(base, head), "gpu.name (none / A GPU)", "device (cpu / cuda)", "dtype (float32 / float16)")


def test_which_of_two_gpus_does_not_matter(compare: Compare, base: Run, head: Run) -> None:
    make_cuda(base)
    for bench in make_cuda(head)["benchmarks"]:
        bench["extra_info"]["device"] = "cuda:1"
    assert compare(base, head).code == 0


@pytest.mark.parametrize("key", ["dtype", "batch_size", "new_tokens", "weights", "audio"])
def test_unlike_definitions(key: str, compare: Compare, base: Run, head: Run) -> None:
    info_of(head).update({key: "another", "case_definition": "another"})
    refused(compare(base, head), f"{key} (", "/ another)", f"--allow {key}")
    refused(compare(base, head, "--only", "counters"), f"{key} (")
    assert compare(base, head, "--allow", key).code == 0


def test_definitions_that_differ_in_their_hash_alone(compare: Compare, base: Run, head: Run) -> None:
    info_of(head)["case_definition"] = "another"
    refused(compare(base, head), "case_definition (", "1 case")
    assert compare(base, head, "--allow", "case_definition").code == 0


def test_unlike_clocks(compare: Compare, base: Run, head: Run) -> None:
    set_timer(head, "process_time")
    exact = ("--only", "memory", "--only", "counters")
    refused(compare(base, head), "timer (perf_counter / process_time)", "--allow timer", " ".join(exact))
    assert compare(base, head, "--allow", "timer").code == 0
    assert compare(base, head, *exact).code == 0
    set_timer(base, "process_time")
    assert compare(base, head).code == 0


@pytest.mark.parametrize("timer", ["perf_counter", None, 7, []])
def test_a_run_that_names_no_clock_was_timed_by_the_default(
    timer: object, compare: Compare, base: Run, head: Run
) -> None:
    set_timer(head, timer)
    assert compare(base, head).code == 0
    base["benchmarks"][0]["options"] = "lost"
    assert compare(base, head).code == 0


def test_a_clock_that_is_allowed_hides_no_other_work(compare: Compare, base: Run, head: Run) -> None:
    set_timer(head, "process_time")
    info_of(head)["case_definition"] = "another"
    refused(compare(base, head, "--allow", "timer"), "case_definition (", "1 case")
    refused(compare(base, head, "--allow", "case_definition"), "timer (")


def test_a_key_that_cannot_be_allowed(compare: Compare, base: Run, head: Run) -> None:
    refused(compare(base, head, "--allow", "mood"), "'mood' is unknown", "thread_count")


def test_the_same_run_twice(compare: Compare, run_compare: Compare, base: Run, tmp_path: Path) -> None:
    refused(compare(base, base), "the same run twice")
    path = save(base, tmp_path / "one.json")
    refused(run_compare(path, path), "the same run twice")


@pytest.fixture
def same_package(base: Run, head: Run) -> tuple[Run, Run]:
    """Two runs of one package."""
    head["machine_info"]["package_hash"] = base["machine_info"]["package_hash"]
    return base, head


def test_one_package_is_no_comparison_unless_it_is_meant(compare: Compare, same_package: tuple[Run, Run]) -> None:
    base, head = same_package
    head["commit_info"]["id"] = "b" * 40
    refused(compare(base, head), "the same package (000000000001): there is no change to judge; --same")
    outcome = compare(base, head, "--same")
    assert outcome.code == 0
    assert "both runs measured the same package (000000000001): what differs is noise" in outcome.out
    head["machine_info"]["package_hash"] = "another"
    assert "the same package" not in compare(base, head, "--same").out


@pytest.mark.parametrize("recorded", [None, "absent"])
def test_packages_that_are_not_recorded_are_compared(
    recorded: str | None, compare: Compare, same_package: tuple[Run, Run]
) -> None:
    for run in same_package:
        if recorded is None:
            run["machine_info"]["package_hash"] = None
        else:
            del run["machine_info"]["package_hash"]
    assert compare(*same_package).code == 0


def test_what_was_allowed_is_compared_with_one_package(compare: Compare, same_package: tuple[Run, Run]) -> None:
    base, head = same_package
    refused(compare(base, head, "--allow", "torch", "--allow", "dtype"), "the same package")
    head["machine_info"]["torch"] = "2.12.0"
    for arguments in (("--allow", "torch"), ("--allow", "torch", "--same"), ("--only", "memory")):
        outcome = compare(base, head, *arguments)
        assert outcome.code == 0
        assert "compared although the machines differ: torch" in outcome.out
        assert "the same package" not in outcome.out


def test_a_definition_that_was_allowed_is_compared_with_one_package(
    compare: Compare, same_package: tuple[Run, Run]
) -> None:
    info_of(same_package[1]).update(dtype="another", case_definition="another")
    assert compare(*same_package, "--allow", "dtype").code == 0


def test_another_cpu_is_no_change_of_what_is_exact(compare: Compare, same_package: tuple[Run, Run]) -> None:
    base, head = same_package
    head["machine_info"]["cpu"] = {"brand_raw": "B CPU"}
    refused(compare(base, head, "--only", "counters"), "the same package")
    set_outcome(head, FLASH, "failed", "broken")  # nor is what did not run
    refused(compare(base, head, "--only", "counters"), "the same package")
