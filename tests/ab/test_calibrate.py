"""Calibration: this machine's noise from repeated runs, written where `compare` finds it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perf_tests.ab import calibrate
from perf_tests.ab.process import Job
from perf_tests.gate import command
from perf_tests.gate.calibration import calibration_path
from perf_tests.gate.noise import measure_noise
from perf_tests.runs.saved import parse_run
from tests.make_runs import FLASH, MACHINE, add_yardstick, disturb, info_of, make_run, save, set_timer, slow_down

from .conftest import Lab, Repository

Say = Callable[..., tuple[int, str, str]]
Run = dict[str, Any]


@pytest.fixture
def say(repository: Repository, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs `calibrate` with the arguments given."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = calibrate.main([*map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def make_unchanged(seed: int) -> Run:
    """A run of the one package of all these runs."""
    run = make_run(seed=seed)
    run["machine_info"]["package_hash"] = MACHINE["package_hash"]
    return run


@pytest.fixture
def saved(tmp_path: Path) -> list[Path]:
    """Eight runs of unchanged code."""
    return [save(make_unchanged(seed), tmp_path / "saved" / f"{seed}.json") for seed in range(1, 9)]


def stored(run: Run) -> dict[str, Any]:
    cases: dict[str, Any] = json.loads(calibration_path(run["machine_info"]).read_text())["cases"]
    return cases


def test_the_working_tree_is_measured_again_and_again(say: Say, lab: Lab, repository: Repository) -> None:
    code, out, _ = say("--runs", "6")
    assert code == 0
    assert len(lab.jobs) == 6
    assert {job.tree for job in lab.jobs} == {repository.root}
    assert FLASH in out
    assert list(stored({"machine_info": MACHINE})) == [FLASH]  # the original has no control, so no noise


def test_an_interrupted_calibration_goes_on(say: Say, lab: Lab) -> None:
    lab.interrupt_at = 4
    code, _, err = say("--runs", "6")
    assert code == 2
    assert "goes on from there" in err
    lab.interrupt_at = 0
    assert say("--runs", "6")[0] == 0
    assert len(lab.jobs) == 4 + 3


def test_a_finished_calibration_is_measured_anew(say: Say, lab: Lab) -> None:
    say("--runs", "6")
    assert say("--runs", "6")[0] == 0
    assert len(lab.jobs) == 12


def test_a_fresh_calibration_takes_nothing_over(say: Say, lab: Lab) -> None:
    lab.interrupt_at = 4
    say("--runs", "6")
    lab.interrupt_at = 6
    say("--runs", "6", "--fresh")
    lab.interrupt_at = 0
    assert say("--runs", "6")[0] == 0
    assert len(lab.jobs) == 4 + 2 + 5


def test_saved_runs_will_do(say: Say, saved: list[Path]) -> None:
    code, out, _ = say("--from", *saved)
    assert code == 0
    entry = stored(make_run())[FLASH]
    assert entry["runs"] == 8
    assert entry["case_definition"] == "def-tiny.en-4-single"
    assert 0 < entry["noise"] < 0.02 < entry["smallest_visible_change"] < 0.06
    assert f"{100 * entry['noise']:.1f} %" in out


@pytest.mark.parametrize("with_yardstick", [8, 7])
def test_the_yardstick_counts_where_all_runs_have_it(
    with_yardstick: int, say: Say, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for seed in range(1, 9):
        run = make_unchanged(seed)
        memory = 1.06 if seed % 2 else 1.0
        slow_down(run, memory)
        if seed <= with_yardstick:
            add_yardstick(run, as_slow_as=memory)
        paths.append(save(run, tmp_path / f"{seed}.json"))
    assert say("--from", *paths)[0] == 0
    entry = stored(make_run())[FLASH]
    assert entry["yardstick"] == (with_yardstick == 8)
    assert (entry["noise"] < 0.02) == (with_yardstick == 8)


def test_compare_uses_it(say: Say, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noisy = []
    for seed in range(1, 9):
        run = make_unchanged(seed)
        slow_down(run, 1.1 if seed % 2 else 1.0)
        noisy.append(save(run, tmp_path / f"{seed}.json"))
    head = make_run(seed=20)
    slow_down(head, 1.06)
    pair = [str(save(make_run(seed=21), tmp_path / "base.json")), str(save(head, tmp_path / "head.json"))]
    assert command.main(pair) == 1
    assert "no calibration of this machine" in capsys.readouterr().out
    code, said, _ = say("--from", *noisy)
    assert code == 0
    assert said.endswith(": 1 case of A CPU, 2 threads, torch 2.13.0+cpu\n")
    assert command.main(pair) == 0
    out = capsys.readouterr().out
    assert "no calibration" not in out
    assert "calibration of A CPU, 2 threads, torch 2.13.0+cpu, made today (commit aaaaaaaaaa)\n" in out


def test_noise_by_another_clock_is_not_this_ones(say: Say, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for seed in range(1, 9):
        run = make_run(seed=seed)
        run["machine_info"]["package_hash"] = "0123456789ab"
        set_timer(run, "process_time")
        paths.append(save(run, tmp_path / f"{seed}.json"))
    assert say("--from", *paths)[0] == 0
    command.main([*map(str, paths[:2]), "--same"])
    assert "noise from the calibration of " in capsys.readouterr().out
    pair = [str(save(make_run(seed=seed), tmp_path / f"{seed}.json")) for seed in (20, 21)]
    command.main(pair)
    assert "1 case not in this machine's calibration" in capsys.readouterr().out


def test_another_case_keeps_its_noise(say: Say, saved: list[Path]) -> None:
    say("--from", *saved)
    path = calibration_path(MACHINE)
    document = json.loads(path.read_text())
    document["cases"]["another"] = document["cases"].pop(FLASH)
    document |= {"datetime": "2026-01-01T00:00:00+00:00", "commit": "c" * 40}
    path.write_text(json.dumps(document))
    for _ in range(2):
        say("--from", *saved)
        cases = stored(make_run())
        assert set(cases) == {"another", FLASH}
        # When and of what it was measured does not change with the other's.
        assert cases["another"] | {"datetime": "2026-01-01T00:00:00+00:00", "commit": "c" * 40} == cases["another"]
        assert "datetime" not in cases[FLASH]


def test_the_smallest_visible_change_is_found_and_half_of_it_is_not(saved: list[Path]) -> None:
    records = [parse_run(make_run(seed=seed), "run").records[FLASH] for seed in range(40)]
    visible = measure_noise([record.rounds for record in records[:12]]).smallest_visible_change

    def found(factor: float) -> float:
        regressed = 0
        for seed in range(40, 80):
            base, head = make_run(seed=seed), make_run(seed=seed + 100)
            slow_down(head, factor)
            regressed += judge(base, head) == "REGRESSED"
        return regressed / 40

    assert found(1 + visible) >= 0.85
    assert found(1 + visible / 2) <= 0.5


def judge(base: Run, head: Run) -> str:
    from perf_tests.gate.comparison import compare_runs
    from perf_tests.gate.thresholds import Rules

    comparison = compare_runs(parse_run(base, "base"), parse_run(head, "head"), Rules())
    return next(case.verdict for case in comparison.cases if case.id == FLASH)


def test_a_disturbed_run_does_not_count(say: Say, saved: list[Path]) -> None:
    run = json.loads(saved[0].read_text())
    disturb(run)
    slow_down(run, 2.0)
    save(run, saved[0])
    assert say("--from", *saved)[0] == 0
    assert stored(run)[FLASH]["runs"] == 7
    assert stored(run)[FLASH]["noise"] < 0.02


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: run["machine_info"].update(package_hash="another"), "noise is that of unchanged code"),
        (lambda run: run["machine_info"].update(torch="3.0"), "unlike machines: torch"),
        (lambda run: info_of(run).update(case_definition="another"), "its definition, or the clock, differs"),
        (lambda run: set_timer(run, "process_time"), "its definition, or the clock, differs"),
        (disturb, "5 runs; at least 6 are needed, 1 more"),
    ],
)
def test_runs_that_tell_no_noise_are_refused(
    say: Say, saved: list[Path], spoil: Callable[[Run], None], words: str
) -> None:
    run = json.loads(saved[3].read_text())
    spoil(run)
    save(run, saved[3])
    code, _, err = say("--from", *saved[:6])
    assert code == 2
    assert words in err
    assert not calibration_path(MACHINE).exists()


def test_the_same_run_twice_is_refused(say: Say, saved: list[Path]) -> None:
    code, _, err = say("--from", *saved, saved[-1])
    assert code == 2
    assert "the same run twice" in err


def test_too_few_runs_are_refused(say: Say, lab: Lab) -> None:
    code, _, err = say("--runs", "5")
    assert code == 2
    assert "'5' is no number of at least 6" in err


def test_a_checkout_that_cannot_be_written_to_is_said(say: Say, lab: Lab, repository: Repository) -> None:
    (repository.root / ".perf_runs").write_text("in the way")
    code, _, err = say()
    assert code == 2
    assert err.endswith("; save the runs elsewhere (--benchmark-storage), and give them by --from\n")
    assert not lab.jobs


def test_a_process_that_fails_ends_it(say: Say, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from perf_tests.common.errors import BadInputError

    def refuse(job: Job) -> None:
        raise BadInputError("pytest ended with 4")

    monkeypatch.setattr("perf_tests.ab.process.measure", refuse)
    code, _, err = say()
    assert code == 2
    assert err.endswith("perf_tests calibrate: pytest ended with 4\n")
