"""From what people type to a run; promoting and merging runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perf_tests.common.errors import BadInputError
from perf_tests.matrix.cases import Case
from perf_tests.runs import merge, promote
from perf_tests.runs.journal import Context, Journal
from perf_tests.runs.references import locate, saved_runs
from perf_tests.runs.saved import read_run
from perf_tests.runs.schema import PERF_CASES
from perf_tests.runs.validation import validate
from tests.gate.conftest import Outcome
from tests.make_runs import (
    CELL,
    FLASH,
    ORIGINAL,
    add_yardstick,
    bench_of,
    info_of,
    make_plain,
    make_run,
    save,
    set_outcome,
)

COMMITS = ("1a2b" + "0" * 36, "1a2c" + "0" * 36, "1a2c" + "0" * 36)


@pytest.fixture
def storage() -> Path:
    """Three saved runs, of two commits, where pytest-benchmark would look for them."""
    folder = Path(".benchmarks")
    for number, commit in enumerate(COMMITS, start=1):
        name = f"{number:04}_{commit}_20261124_10{number:02}00.json"
        save(make_run(seed=number, commit=commit), folder / "Machine" / name)
    save({}, folder / "Machine" / "journal_20261124_1.jsonl")
    return folder


@pytest.mark.parametrize(
    ("reference", "number"),
    [
        ("latest", 3),
        ("latest~0", 3),
        ("latest~2", 1),
        ("0001", 1),
        ("2", 2),
        ("1a2b", 1),
        (COMMITS[0], 1),
        ("1a2c", 3),
    ],
)
def test_references(reference: str, number: int, storage: Path) -> None:
    found = locate(reference, storage)
    assert found.path.name.startswith(f"{number:04}_")
    assert found.chosen == (not reference.startswith("latest"))


def test_a_path(storage: Path) -> None:
    assert locate("some/where.json", storage).path == Path("some/where.json")
    assert locate("where.json", storage).path == Path("where.json")
    save({}, Path("extensionless"))
    assert locate("extensionless", storage).path == Path("extensionless")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("", "empty"),
        ("latest~3", "3 runs"),
        ("7", "no run of such a number"),
        ("1a2", "no such run"),
        ("1a2d", "no run of such a number or commit"),
        ("nobody", "a path, a run's number, a commit"),
        ("latest~-1", "no such run"),
    ],
)
def test_references_to_nothing(reference: str, words: str, storage: Path) -> None:
    with pytest.raises(BadInputError, match=words):
        locate(reference, storage)


def test_a_prefix_of_two_commits_is_refused(storage: Path) -> None:
    save(make_run(seed=4, commit="1a2b" + "f" * 36), storage / "Machine" / "0004_named.json")
    with pytest.raises(BadInputError, match="give more"):
        locate("1a2b", storage)
    assert locate("1a2bf", storage).path.name == "0004_named.json"


def test_a_number_of_two_machines_is_refused(storage: Path) -> None:
    save(make_run(seed=9), storage / "Other" / "0001_x.json")
    with pytest.raises(BadInputError, match="2 runs have it"):
        locate("1", storage)


def test_this_machines_folder_comes_first(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(make_run(seed=9), storage / "Other" / "0001_x.json")
    monkeypatch.setattr("perf_tests.runs.references._machine_folder", lambda: "Other")
    assert [run.path.name for run in saved_runs(storage)] == ["0001_x.json"]


def test_the_machines_folder_is_pytest_benchmarks() -> None:
    from pytest_benchmark.utils import get_machine_id

    from perf_tests.runs.references import _machine_folder

    assert _machine_folder() == get_machine_id()


def test_without_a_saved_run(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="--benchmark-autosave"):
        locate("latest", tmp_path / "none")


def test_comparing_with_latest_says_that_nobody_chose_it(storage: Path, run_compare: Callable[..., Outcome]) -> None:
    outcome = run_compare("latest~1", "latest")
    assert outcome.code == 0
    assert "BASE is latest~1, whatever was saved then, and not a baseline that anybody chose" in outcome.out
    assert "anybody chose" not in run_compare("2", "latest").out


def test_a_name_in_a_json_is_never_a_path(storage: Path, tmp_path: Path, run_compare: Callable[..., Outcome]) -> None:
    evil = make_run(seed=8, commit=str(tmp_path / "elsewhere.json"))
    evil["name"] = evil["path"] = "../../etc/passwd"
    save(evil, storage / "Machine" / "0004_evil.json")
    before = sorted(tmp_path.rglob("*"))
    assert run_compare("3", "4").code == 0
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [tmp_path / "report.json"]


# promote


def test_promote(storage: Path, run_compare: Callable[..., Outcome], tmp_path: Path) -> None:
    assert promote.main(["1", "main"]) == 0
    promoted = tmp_path / "store" / "baselines" / "main.json"
    source = next(storage.rglob("0001_*.json"))
    assert promoted.read_bytes() == source.read_bytes()
    outcome = run_compare("main", "latest")
    assert outcome.code == 0
    assert "anybody chose" not in outcome.out
    source.unlink()
    assert run_compare("main", "latest").code == 0


def test_a_baseline_does_not_drift_and_the_old_one_is_kept(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote.main(["1", "main"]) == 0
    folder = tmp_path / "store" / "baselines"
    before = (folder / "main.json").read_bytes()
    assert promote.main(["2", "main"]) == 0
    (kept,) = (folder / "replaced").iterdir()
    assert kept.read_bytes() == before
    assert kept.name in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["latest", "latest~1", "abc123", "12", "../x", "a/b", ".x", "", "x.json", "a" * 65, "é"]
)
def test_names_that_are_none(name: str, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert promote.main(["1", name]) == 2
    assert "cannot name a baseline" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_what_cannot_be_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    set_outcome(run, FLASH, "failed", "parity")
    path = str(save(run, tmp_path / "run.json"))
    assert promote.main([path, "main"]) == 0
    assert "1 case of it did not pass" in capsys.readouterr().out
    set_outcome(run, ORIGINAL, "skipped", "no GPU")
    save(run, tmp_path / "run.json")
    assert promote.main([path, "main"]) == 2
    save(make_plain(make_run()), tmp_path / "run.json")
    assert promote.main([path, "main"]) == 2


# merge


def shards() -> list[dict[str, Any]]:
    return [make_run([Case(*CELL, name)], seed=seed) for seed, name in enumerate(("original", "flash"), start=1)]


def test_merge(tmp_path: Path, run_compare: Callable[..., Outcome]) -> None:
    runs = shards()
    add_yardstick(runs[1])
    paths = [str(save(run, tmp_path / f"{index}.json")) for index, run in enumerate(runs)]
    out = tmp_path / "whole.json"
    assert merge.main([str(out), *paths]) == 0
    whole = json.loads(out.read_text())
    assert [bench["name"] for bench in whole["benchmarks"]] == [ORIGINAL, FLASH]
    assert [entry["id"] for entry in whole["perf_cases"]] == [ORIGINAL, FLASH]
    assert all(not list(validate(entry, PERF_CASES, "")) for entry in whole["perf_cases"])
    assert [entry["session"] for entry in whole["perf_cases"]] == [0, 1]
    assert whole["perf_sessions"] == [session for run in runs for session in run["perf_sessions"]]
    assert info_of(whole)["yardstick"] == info_of(runs[1])["yardstick"]
    assert run_compare(out, save(make_run(seed=5), tmp_path / "other.json")).code == 0


def test_the_merged_run_keeps_the_limits_that_one_shard_measured(tmp_path: Path) -> None:
    """Components are a run of their own: the tables' cases measure no limits."""
    runs = shards()
    runs[1]["machine_info"]["limits"] = {"memory_bytes_per_second": 4e10}
    paths = [str(save(run, tmp_path / f"{index}.json")) for index, run in enumerate(runs)]
    out = tmp_path / "whole.json"
    assert merge.main([str(out), *paths]) == 0
    assert json.loads(out.read_text())["machine_info"]["limits"] == {"memory_bytes_per_second": 4e10}


@pytest.mark.parametrize("rounds", [1, 20])
def test_a_journal_becomes_a_run(rounds: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of single rounds too, which the gate cannot judge, but which are what there is."""
    whole = make_run(rounds=rounds)
    journal = Journal(
        tmp_path / "journal_1.jsonl", [ORIGINAL, FLASH], {}, Context(whole["machine_info"], whole["commit_info"])
    )
    journal.note(ORIGINAL, "passed", None)
    journal.close(ORIGINAL, bench_of(whole, ORIGINAL))
    journal.file.close()
    out = tmp_path / "run.json"
    assert merge.main([str(out), str(journal.path)]) == 0
    saved = read_run(out, timed=rounds > 1)
    assert [(record.outcome, record.measured) for record in saved.records.values()] == [
        ("passed", True),
        ("skipped", False),
    ]
    assert (saved.commit, saved.machine_info) == (whole["commit_info"]["id"], whole["machine_info"])

    capsys.readouterr()
    assert merge.main([str(tmp_path / "new.json"), str(tmp_path / "journal_2.jsonl")]) == 2
    assert "journal_2.jsonl: there is no such file" in capsys.readouterr().err
    (tmp_path / "journal_2.jsonl").write_text('{"journal": 2}\n')
    assert merge.main([str(tmp_path / "new.json"), str(tmp_path / "journal_2.jsonl")]) == 2
    assert "journal_2.jsonl: not a journal of this version of the suite" in capsys.readouterr().err


def refuse_merge(runs: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    paths = [str(save(run, tmp_path / f"{index}.json")) for index, run in enumerate(runs)]
    assert merge.main([str(tmp_path / "whole.json"), *paths]) == 2
    assert not (tmp_path / "whole.json").exists()
    return capsys.readouterr().err


def test_shards_that_do_not_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = shards()
    other["machine_info"]["torch"] = "2.12"
    assert "torch (2.13.0+cpu / 2.12)" in refuse_merge([one, other], tmp_path, capsys)
    one, other = shards()
    other["commit_info"]["id"] = "b" * 40
    assert "different commits" in refuse_merge([one, other], tmp_path, capsys)
    assert f"{FLASH}: both in" in refuse_merge([make_run(seed=1), shards()[1]], tmp_path, capsys)
    assert "plain" in refuse_merge([one, make_plain(shards()[1])], tmp_path, capsys)


def test_merge_never_writes_over_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [save(run, tmp_path / f"{index}.json") for index, run in enumerate(shards())]
    before = paths[0].read_bytes()
    assert merge.main([*map(str, paths)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert paths[0].read_bytes() == before
