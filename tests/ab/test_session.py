"""Sessions of `ab`: the order of the processes, when it is enough, going on, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perf_tests.ab.process import Job
from perf_tests.ab.session import BLOCKS_OF_A_CHANGE
from perf_tests.common.package_hash import PACKAGE
from tests.make_runs import FLASH, add_yardstick, disturb, info_of, make_cuda, make_gpu_samples, set_outcome, slow_down
from tests.whole_runs import validate_run

from .conftest import Lab, Outcome, Repository, commit

Ab = Callable[..., Outcome]


def session_folder(repository: Repository) -> Path:
    (folder,) = (repository.root / ".perf_runs").iterdir()
    return folder


def time_of(outcome: Outcome) -> dict[str, Any]:
    case = next(case for case in outcome.report["cases"] if case["id"] == FLASH)
    return next(metric for metric in case["metrics"] if metric["metric"] == "time")


def test_sides_and_control_take_turns(ab: Ab, lab: Lab) -> None:
    assert ab("--processes", "4").code == 0
    assert lab.order() == "Bb Hb Ha Ba Bb Hb Ha Ba"


def test_a_slower_head_regressed(ab: Ab, lab: Lab) -> None:
    lab.factors = {"head": 1.05}
    outcome = ab("--processes", "4")
    assert outcome.code == 1
    assert outcome.report["verdict"] == "REGRESSED"
    assert time_of(outcome)["change"] == pytest.approx(0.05, abs=0.01)
    assert time_of(outcome)["allowed"] == 0.02


def test_more_memory_regressed(ab: Ab, lab: Lab) -> None:
    def fatten(run: dict[str, Any], job: Job) -> None:
        if job.tree.name == "head":
            info_of(run)["peak_memory_allocated_bytes"] *= 1.02

    def whole(run: dict[str, Any], job: Job) -> None:
        fatten(run, job)
        info_of(run)["peak_memory_allocated_bytes"] = int(info_of(run)["peak_memory_allocated_bytes"])

    lab.spoil = whole
    outcome = ab("--processes", "2")
    assert outcome.code == 1
    assert "peak_memory_allocated_bytes +2.0 %" in outcome.out


def test_both_runs_are_saved_whole(ab: Ab, lab: Lab, repository: Repository) -> None:
    ab("--processes", "3")
    for name, revision in (("base", repository.base), ("head", repository.head)):
        run = json.loads((session_folder(repository) / f"{name}.json").read_text())
        assert not [problem for problem in validate_run(run) if "machine_info" not in problem]
        assert run["commit_info"]["id"] == revision
        assert info_of(run)["process_rounds"] == [20, 20, 20]
        assert info_of(run)["control"]["position"] == "both"
        assert len(info_of(run)["control"]["rounds_seconds"]) == 60


def test_yardsticks_are_pooled_and_count(ab: Ab, lab: Lab, repository: Repository) -> None:
    def slower_memory(run: dict[str, Any], job: Job) -> None:
        add_yardstick(run, as_slow_as=1.05 if job.tree.name == "head" else 1.0)

    lab.factors = {"head": 1.05}
    lab.spoil = slower_memory
    outcome = ab("--processes", "4")
    assert outcome.report["verdict"] == "PASS"
    assert time_of(outcome)["change"] == pytest.approx(0, abs=0.01)
    run = json.loads((session_folder(repository) / "head.json").read_text())
    assert not [problem for problem in validate_run(run) if "machine_info" not in problem]
    assert [*map(len, info_of(run)["yardstick"]["rounds_seconds"].values())] == [80, 80]


@pytest.mark.parametrize("version", [None, 2])
def test_a_process_without_the_others_yardstick_leaves_the_control(
    version: int | None, ab: Ab, lab: Lab, repository: Repository
) -> None:
    def spoil(run: dict[str, Any], job: Job) -> None:
        if len(lab.jobs) == 1 and version is None:
            del info_of(run)["yardstick"]
        else:
            add_yardstick(run, as_slow_as=5.0 / len(lab.jobs), version=version if version and len(lab.jobs) == 1 else 1)

    lab.spoil = spoil
    outcome = ab("--processes", "4")
    assert time_of(outcome)["change"] == pytest.approx(0, abs=0.01)
    base, head = (json.loads((session_folder(repository) / f"{side}.json").read_text()) for side in ("base", "head"))
    assert info_of(base)["yardstick"] is None
    assert info_of(head)["yardstick"] is not None


def test_components_are_pooled_too(ab: Ab, lab: Lab, repository: Repository) -> None:
    """An encoder makes no tokens; each process compares itself with the limits that it measured."""

    def component(run: dict[str, Any], job: Job) -> None:
        fraction = 0.4 + 0.1 * len(lab.jobs)
        info_of(run).update(tokens_per_second=None, fraction_of_limit=fraction, floor_seconds=0.2 * fraction)

    lab.spoil = component
    assert ab("--processes", "3").code == 0
    run = json.loads((session_folder(repository) / "base.json").read_text())
    assert info_of(run)["tokens_per_second"] is None
    assert info_of(run)["fraction_of_limit"] == pytest.approx(0.8)  # of 0.5, 0.8 and 0.9: the first, fourth and fifth
    assert info_of(run)["floor_seconds"] == pytest.approx(0.16)


def test_only_flash_is_measured_unless_told_otherwise(ab: Ab, lab: Lab) -> None:
    ab("--processes", "2")
    ab("--processes", "2", "--fresh", "--", "--perf-implementation", "eager", "-k", "tiny")
    assert "--perf-implementation=flash" in lab.jobs[0].arguments
    assert lab.jobs[-1].arguments[-4:] == ["--perf-implementation", "eager", "-k", "tiny"]
    assert not any("flash" in argument for argument in lab.jobs[-1].arguments)


def test_the_trees_are_gone_afterwards(ab: Ab, lab: Lab, repository: Repository) -> None:
    ab("--processes", "2")
    assert not (session_folder(repository) / "trees").exists()


def test_an_interrupted_session_goes_on(ab: Ab, lab: Lab, repository: Repository) -> None:
    lab.interrupt_at = 4
    outcome = ab("--processes", "3")
    assert outcome.code == 2
    assert "interrupted; what was measured is in" in outcome.err
    assert not (session_folder(repository) / "trees").exists()
    lab.interrupt_at = 0
    assert ab("--processes", "3").code == 0
    assert lab.order() == "Bb Hb Ha Ba Ba Bb Hb"  # the interrupted one again, and none of those before


def test_a_finished_session_is_measured_anew(ab: Ab, lab: Lab) -> None:
    ab("--processes", "2")
    ab("--processes", "2")
    assert 8 <= len(lab.jobs) < 20


def test_another_change_is_another_session(ab: Ab, lab: Lab, repository: Repository) -> None:
    lab.interrupt_at = 3
    ab("--processes", "2")
    repository.write(f"{PACKAGE}/__init__.py", "version = 3\n")
    lab.interrupt_at = 0
    assert ab("--processes", "2", head=commit(repository.root, "third")).code == 0
    assert len(lab.jobs) == 3 + 4


def test_a_folder_of_another_session_is_refused(ab: Ab, lab: Lab, tmp_path: Path) -> None:
    ab("--processes", "2", "--keep", str(tmp_path / "kept"))
    outcome = ab("--processes", "2", "--keep", str(tmp_path / "kept"), "--", "-k", "tiny")
    assert outcome.code == 2
    assert "holds another session" in outcome.err


@pytest.mark.usefixtures("clock")
def test_a_budget_ends_where_all_is_settled(ab: Ab, lab: Lab) -> None:
    outcome = ab("--budget", "60")
    assert outcome.code == 0
    assert 4 <= len(lab.jobs) <= 8


@pytest.mark.usefixtures("clock")
def test_a_change_takes_more_blocks(ab: Ab, lab: Lab) -> None:
    """However clear it is after two or three: all processes of one side may be in one state then."""
    lab.factors = {"head": 1.3}
    assert ab("--budget", "60").code == 1
    assert len(lab.jobs) == 2 * BLOCKS_OF_A_CHANGE


def waver(run: dict[str, Any], job: Job) -> None:
    """HEAD is as fast as BASE in one block and slower in the next: no number of blocks settles it."""
    if job.tree.name == "head" and job.control_after:
        slow_down(run, 1.04)


@pytest.mark.usefixtures("clock")
def test_a_budget_goes_to_the_cases_that_are_not_settled(ab: Ab, lab: Lab) -> None:
    lab.spoil = waver
    ab("--budget", "20", "--", "--perf-implementation", "flash", "--perf-implementation", "original")
    assert len(lab.jobs) == 20
    assert lab.jobs[0].targets == ("perf_tests",)
    assert {tuple(job.targets) for job in lab.jobs[8:]} == {(f"perf_tests/test_generate.py::{FLASH}",)}


@pytest.mark.usefixtures("clock")
def test_a_budget_is_not_overdrawn(ab: Ab, lab: Lab) -> None:
    lab.spoil = waver
    ab("--budget", "7")
    assert len(lab.jobs) == 6


def test_a_disturbed_process_is_left_out_where_there_are_others(ab: Ab, lab: Lab) -> None:
    def spoil(run: dict[str, Any], job: Job) -> None:
        if len(lab.jobs) == 3:
            disturb(run)
            info_of(run)["control"]["rounds_seconds"] = [0.8] * 20

    lab.spoil = spoil
    lab.factors = {"head": 1.05}
    outcome = ab("--processes", "4")
    assert outcome.code == 1
    assert "20 of 80 pairs of HEAD left out" in outcome.out


def test_all_of_it_disturbed_is_judged_by_what_that_changes(ab: Ab, lab: Lab) -> None:
    lab.spoil = lambda run, job: disturb(run)
    assert ab("--processes", "2").report["verdict"] == "PASS"
    lab.factors = {"head": 1.5}
    outcome = ab("--processes", "2", "--fresh")
    assert outcome.code == 1
    assert "HEAD was disturbed" in outcome.out


@pytest.mark.usefixtures("clock")
def test_a_budget_is_spent_on_what_was_disturbed(ab: Ab, lab: Lab) -> None:
    """Two blocks in company on the GPU give no verdict; those after them do."""

    def spoil(run: dict[str, Any], job: Job) -> None:
        company = int(len(lab.jobs) <= 4)
        info_of(make_cuda(run))["device_state"]["gpu"] = make_gpu_samples(foreign_processes=[company] * 3)

    lab.spoil = spoil
    assert ab("--budget", "4", "--strict").code == 1
    lab.jobs.clear()
    outcome = ab("--budget", "20", "--strict", "--fresh")
    assert outcome.code == 0
    assert 8 <= len(lab.jobs) < 20


def test_a_case_that_failed_in_one_process_failed(ab: Ab, lab: Lab) -> None:
    def fail(run: dict[str, Any], job: Job) -> None:
        if len(lab.jobs) == 3:  # head's second
            set_outcome(run, FLASH, "failed", "ParityError: off")

    lab.spoil = fail
    outcome = ab("--processes", "3")
    assert outcome.code == 1
    assert "ParityError: off" in outcome.out


def test_a_process_that_imported_another_package_is_refused(ab: Ab, lab: Lab) -> None:
    lab.spoil = lambda run, job: run["machine_info"].update(package_path="/elsewhere/whisper_flash_attention")
    outcome = ab("--processes", "2")
    assert outcome.code == 2
    assert "imported /elsewhere/whisper_flash_attention" in outcome.err


def test_a_process_that_imported_the_other_sides_package_is_refused(ab: Ab, lab: Lab) -> None:
    seen: list[str] = []

    def mix_up(run: dict[str, Any], job: Job) -> None:
        seen.append(run["machine_info"]["package_hash"])
        run["machine_info"]["package_hash"] = seen[0]

    lab.spoil = mix_up
    outcome = ab("--processes", "2")
    assert outcome.code == 2
    assert "the process for head imported" in outcome.err


@pytest.mark.parametrize("head", [".", "words"])
def test_the_same_package_twice_is_refused_before_anything_is_measured(
    head: str, ab: Ab, lab: Lab, repository: Repository
) -> None:
    repository.write("README.md", "words\n")
    if head == "words":
        head = commit(repository.root, "words")
    outcome = ab("--processes", "2", base=repository.head, head=head)
    assert outcome.code == 2
    assert "the same package" in outcome.err
    assert "--same" in outcome.err
    assert outcome.report["verdict"] == "REFUSED"
    assert not lab.jobs
    assert not (repository.root / ".perf_runs").exists()


def test_the_same_package_twice_is_measured_where_that_is_meant(ab: Ab, lab: Lab, repository: Repository) -> None:
    outcome = ab("--processes", "2", "--same", base=repository.head)
    assert outcome.code == 0
    assert lab.order() == "Bb Hb Ha Ba"
    assert "both runs measured the same package" in outcome.out


def test_a_checkout_that_cannot_be_written_to_is_said_before_anything_is_built(
    ab: Ab, lab: Lab, repository: Repository, tmp_path: Path
) -> None:
    (repository.root / ".perf_runs").write_text("in the way")
    outcome = ab("--processes", "2")
    assert outcome.code == 2
    assert "perf_tests ab: cannot write to " in outcome.err
    assert outcome.err.endswith("; --keep DIR keeps the session elsewhere\n")
    assert not lab.jobs
    assert ab("--processes", "2", "--keep", str(tmp_path / "kept")).code == 0


def test_notes_are_told_first(ab: Ab, lab: Lab) -> None:
    outcome = ab("--processes", "2", "--note", "BASE is [red]old\x1b", "--note=-x")
    assert outcome.report["notes"][:2] == ["BASE is [red]old\\x1b", "-x"]
    assert "note: BASE is [red]old" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--processes", "1"), "'1' is no number of at least 2"),
        (("--budget", "0"), "'0' is no number of minutes above 0"),
        (("--time-threshold", "-1"), "'-1' is no percentage"),
    ],
)
def test_what_cannot_be_is_refused(ab: Ab, lab: Lab, arguments: tuple[str, ...], words: str) -> None:
    outcome = ab(*arguments)
    assert outcome.code == 2
    assert words in outcome.err
    assert not lab.jobs
