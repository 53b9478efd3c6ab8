"""History over runs: what is a series, where it changed, what links where."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perf_tests.matrix.cases import Case
from perf_tests.report import gathering
from perf_tests.report.change_points import find_change_points
from perf_tests.report.commits import commit_url, template_of
from tests.make_runs import CELL, FLASH, ORIGINAL, info_of, make_counted, make_run, save, set_timer

from .conftest import Outcome
from .make_history import commit_at, make_history
from .pages import Page, data_of

Report = Callable[..., Outcome]


def noise(count: int, *, seed: int = 0, spread: float = 0.01) -> list[float]:
    rng = random.Random(seed)
    return [1.7 * rng.gauss(1, spread) for _ in range(count)]


def test_a_step_is_found_where_it_is() -> None:
    values = noise(80)
    values[50:] = [0.95 * value for value in values[50:]]
    (found,) = find_change_points(values)
    assert abs(found.place - 50) <= 1
    assert found.change == pytest.approx(-0.05, abs=0.01)
    assert found.before == pytest.approx(1.7, rel=0.01)


def test_two_steps_that_cancel_are_two() -> None:
    values = noise(90)
    values[30:60] = [1.06 * value for value in values[30:60]]
    assert [found.change > 0 for found in find_change_points(values)] == [True, False]


@pytest.mark.parametrize("count", [1, 7, 8, 30, 200, 1000])
def test_noise_is_no_change(count: int) -> None:
    marked = sum(bool(find_change_points(noise(count, seed=seed))) for seed in range(20))
    assert marked <= 1


def test_drift_of_a_single_run_is_no_change() -> None:
    values = noise(60)
    values[30] *= 0.7
    assert find_change_points(values) == []


def test_constant_series_have_no_change_and_tiny_steps_are_none() -> None:
    assert find_change_points([1.5] * 50) == []
    assert find_change_points([1.5] * 25 + [1.505] * 25) == []
    assert len(find_change_points([1.5] * 25 + [1.6] * 25)) == 1


def history_of(html: str) -> dict[str, Any]:
    (choice,) = [choice for name, choice in data_of(html)["choices"].items() if name.endswith("-history")]
    return choice


def test_a_page_marks_the_change_and_its_commit(report: Report, tmp_path: Path) -> None:
    make_history(tmp_path / "runs", 24, step=(14, 1.1))
    outcome = report(tmp_path / "runs", "--commit-url", "https://example.org/commit/{commit}")
    page = Page(outcome.html)
    (change,) = page.tables["Change points, newest first"]
    assert change[1:3] == [commit_at(14)[:7], FLASH]
    assert float(change[5].removesuffix(" %")) == pytest.approx(-9, abs=1.5)
    assert f"https://example.org/commit/{commit_at(14)}" in page.links
    choice = history_of(outcome.html)
    assert list(choice["choices"]) == [FLASH, ORIGINAL]
    assert [index for index, text in enumerate(choice["choices"][FLASH]["change"]) if text] == [14]
    assert choice["choices"][FLASH]["length"] == 24
    assert choice["choices"][ORIGINAL]["change"] is None


def test_the_machines_drift_is_no_change(report: Report, tmp_path: Path) -> None:
    paths = make_history(tmp_path / "runs", 24)
    for path in paths[12:]:  # the machine gets slower, and so do both rounds of every pair
        run = json.loads(path.read_text())
        for bench in run["benchmarks"]:
            bench["stats"]["data"] = [1.3 * seconds for seconds in bench["stats"]["data"]]
        control = info_of(run)["control"]
        control["rounds_seconds"] = [1.3 * seconds for seconds in control["rounds_seconds"]]
        save(run, path)
    outcome = report(tmp_path / "runs")
    assert "Change points, newest first" not in Page(outcome.html).tables
    seconds = history_of(outcome.html)["choices"][FLASH]["seconds"]
    assert seconds[-1] / seconds[0] == pytest.approx(1.3, rel=0.05)


def test_runs_are_ordered_by_time_whatever_their_names(report: Report, tmp_path: Path) -> None:
    for name, when in (("b", "2026-01-02T00:00:00"), ("a", "2026-01-03T00:00:00"), ("c", "2026-01-01T00:00:00")):
        save(make_run(seed=1) | {"datetime": when}, tmp_path / "runs" / f"{name}.json")
    shared = history_of(report(tmp_path / "runs").html)["shared"]
    assert shared["when"] == ["2026-01-01 00:00", "2026-01-02 00:00", "2026-01-03 00:00"]


def test_one_id_and_two_definitions_are_two_series(report: Report, tmp_path: Path) -> None:
    for index in range(4):
        run = make_run([Case(*CELL, "flash")], seed=index)
        info_of(run)["case_definition"] = "before" if index < 2 else "after"
        save(run, tmp_path / "runs" / f"{index}.json")
    choices = history_of(report(tmp_path / "runs").html)["choices"]
    assert {name: columns["length"] for name, columns in choices.items()} == {
        f"{FLASH} (after)": 2,
        f"{FLASH} (before)": 2,
    }
    assert choices[f"{FLASH} (after)"]["run"] == [2, 3]


def test_two_clocks_are_two_series(report: Report, tmp_path: Path) -> None:
    for index in range(4):
        run = make_run([Case(*CELL, "flash")], seed=index)
        if index % 2:
            set_timer(run, "process_time")
        save(run, tmp_path / "runs" / f"{index}.json")
    choices = history_of(report(tmp_path / "runs").html)["choices"]
    names = [f"{FLASH} (def-tiny.en-4-single{clock})" for clock in ("", " by process_time")]
    assert {name: choices[name]["run"] for name in names} == {names[0]: [0, 2], names[1]: [1, 3]}


def test_runs_that_were_counted_have_a_history_of_counters(report: Report, tmp_path: Path) -> None:
    for index in range(3):
        run = make_counted(make_run(seed=index))
        info_of(run)["aten_op_count"] += 545 * index
        save(run, tmp_path / "runs" / f"{index}.json")
    html = report(tmp_path / "runs").html
    columns = history_of(html)["choices"][FLASH]
    assert columns["ops"] == [5451, 5996, 6541]
    assert columns["flops"] == 42_183_462_912
    assert columns["seconds"] is columns["speedup"] is None
    row = next(row for row in Page(html).tables["Cases over the runs"] if row[0] == FLASH)
    assert row[1:] == ["3", *[""] * 5, "179.7", "+0.0 %", "6,541", "+20.0 %", "42,183,462,912", "+0.0 %"]


def test_the_newest_time_is_that_of_the_newest_run_that_has_one(report: Report, tmp_path: Path) -> None:
    paths = make_history(tmp_path / "runs", 3)
    timed = Page(report(*paths[:2]).html).tables["Cases over the runs"]
    save(make_counted(json.loads(paths[2].read_text())), paths[2])
    mixed = Page(report(tmp_path / "runs").html).tables["Cases over the runs"]
    assert [row[1] for row in mixed] == ["3", "3"]
    assert [row[2:] for row in mixed] == [row[2:] for row in timed]
    assert mixed[0][2]
    assert mixed[1][6]


def test_of_very_many_runs_the_newest_are_shown(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "MOST_RUNS", 5)
    make_history(tmp_path / "runs", 9, distinct=1)
    outcome = report(tmp_path / "runs")
    assert history_of(outcome.html)["shared"]["commit"][0] == commit_at(4)[:7]
    assert "of 9 runs of one machine, the newest 5 are shown" in outcome.err


@pytest.mark.parametrize(
    ("remote", "template"),
    [
        ("https://github.com/owner/name.git", "https://github.com/owner/name/commit/{commit}"),
        ("git@github.com:owner/name.git", "https://github.com/owner/name/commit/{commit}"),
        ("ssh://git@gitlab.com/group/owner/name", "https://gitlab.com/group/owner/name/commit/{commit}"),
        ("https://user:secret@example.org:8443/o/n", "https://example.org:8443/o/n/commit/{commit}"),
        ("/srv/git/name.git", None),
        ("file:///srv/git/name.git", None),
        ("", None),
    ],
)
def test_links_come_from_the_remote(remote: str, template: str | None) -> None:
    assert template_of(remote) == template


def test_only_a_commit_is_linked() -> None:
    template = "https://example.org/{commit}"
    assert commit_url(template, "a" * 40) == f"https://example.org/{'a' * 40}"
    for text in ("../../x", "javascript:alert(1)", "", None, "A" * 40):
        assert commit_url(template, text) is None


def test_a_link_template_is_checked(report: Report, tmp_path: Path) -> None:
    make_history(tmp_path / "runs", 1)
    for template in ("https://example.org/", "javascript:{commit}", "/local/{commit}"):
        outcome = report(tmp_path / "runs", "--commit-url", template)
        assert outcome.code == 2
        assert outcome.err.startswith("perf_tests report: --commit-url: give a web address")
