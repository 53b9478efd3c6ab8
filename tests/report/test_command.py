"""`report` on no runs, one, two, several machines, and on what is broken or somebody else's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from perf_tests.matrix.cases import Case
from perf_tests.report import command
from perf_tests.runs import promote
from perf_tests.runs.schema import SCHEMA_VERSION
from tests.make_runs import (
    FLASH,
    ORIGINAL,
    info_of,
    make_counted,
    make_cuda,
    make_gpu_samples,
    make_plain,
    make_run,
    remove,
    save,
    set_outcome,
    set_timer,
)

from .conftest import Outcome
from .make_history import commit_at, make_history
from .pages import Page

Report = Callable[..., Outcome]
SINGLE = "single: batch size 1, 25 new tokens, 100 batches"


def test_no_runs_are_refused_in_a_line_that_says_what_to_do(report: Report, tmp_path: Path) -> None:
    for arguments in ([], ["--storage", tmp_path / "nowhere"], [tmp_path / "cwd"], ["latest"]):
        outcome = report(*arguments)
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1
        assert "no saved runs; make one with pytest perf_tests --benchmark-autosave" in outcome.err
        assert not outcome.html


def test_a_single_run_has_its_tables_and_no_history(report: Report, tmp_path: Path) -> None:
    (path,) = make_history(tmp_path / "runs", 1)
    outcome = report(path)
    assert outcome.code == 0, outcome.err
    page = Page(outcome.html)
    rows = page.tables[SINGLE]
    assert rows[0][:6] == ["tiny.en", "4", "0.180", "0.180", "41.1", "20.3"]
    assert rows[1] == ["tiny.en", "2", *["missing"] * 4, *[""] * 5]
    assert len(rows) == 13
    assert not [name for name in page.ids if name.endswith("-history")]
    assert "verdict" not in page.ids


def test_the_tables_of_2023_come_first_in_the_markdown(report: Report, tmp_path: Path) -> None:
    (path,) = make_history(tmp_path / "runs", 1)
    lines = report(path).markdown.splitlines()
    assert lines[0].startswith("## A CPU, 2 threads")
    start = lines.index("### single: batch size 1, 25 generated tokens, 100 batches")
    header, _, first, second = lines[start + 2 : start + 6]
    assert cells(header) == [
        "Checkpoint",
        "Dec layers",
        "Memory Orig / GB",
        "Memory Flash / GB",
        "Time Orig / s",
        "Time Flash / s",
    ]
    assert cells(first) == ["tiny.en", "4", "0.180", "0.180", "41.1", "20.3"]
    assert cells(second) == ["", "2", "missing", "missing", "missing", "missing"]
    details = [cells(line) for line in lines if "| flash" in line]
    assert details == [
        ["tiny.en", "4", "flash", "2.00 [1.98, 2.02]", "1.00", "50.0", "0.0200", "tokens equal, error 6e-06 of 1e-04"]
    ]
    assert (
        lines[-1] == "`batched`: batch size 32, 256 generated tokens, 10 batches: not one of its 13 cells was measured."
    )


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_time_is_the_median_round_times_the_settings_rounds(report: Report, tmp_path: Path) -> None:
    run = make_run([Case("small.en", 6, "batched", "original")], rounds=3)
    run["benchmarks"][0]["stats"]["data"] = [2.0, 7.0, 3.0]
    lines = report(save(run, tmp_path / "run.json")).markdown.splitlines()
    (row,) = [cells(line) for line in lines if "0.180" in line]
    assert row == ["", "6", "0.180", "missing", "30.0", "missing"]


def test_two_runs_have_the_gates_verdict_on_top(report: Report, tmp_path: Path) -> None:
    base, head = make_history(tmp_path / "runs", 2, step=(1, 1.2))
    outcome = report(base, head)
    page = Page(outcome.html)
    assert page.ids.index("verdict") == min(page.ids.index(name) for name in page.ids if name != "data")
    assert "REGRESSED: 1 of 2 cases regressed, 1 pass" in outcome.html
    assert page.tables["What stands out"][0][:2] == ["REGRESSED", FLASH]
    turned = report(head, base).html
    assert "PASS: 1 of 2 cases pass, 1 improved" in turned
    assert f'<p class="run">commit {commit_at(0)[:10]}, ' in turned  # HEAD, though it is the older one


def test_two_runs_that_cannot_be_compared_say_why(report: Report, tmp_path: Path) -> None:
    base = save(make_run(seed=1), tmp_path / "base.json")
    head = make_run(seed=2)
    head["machine_info"]["torch"] = "3.0"
    outcome = report(base, save(head, tmp_path / "head.json"))
    assert outcome.code == 0
    assert "Not compared" in outcome.html
    assert "torch (2.13.0+cpu / 3.0)" in outcome.html


def test_each_machine_has_a_part_of_its_own(report: Report, tmp_path: Path) -> None:
    save(make_run(seed=1), tmp_path / "runs" / "0001_cpu.json")
    save(make_cuda(make_run(seed=2)), tmp_path / "runs" / "0002_gpu.json")
    save(make_run(seed=3), tmp_path / "runs" / "0003_cpu.json")
    outcome = report(tmp_path / "runs")
    page = Page(outcome.html)
    parts = [attributes["id"] for tag, attributes in page.elements if tag == "article"]
    assert len(parts) == 2
    assert [name for name in page.ids if name.endswith("-history")] == [f"{parts[0]}-history"]
    assert outcome.markdown.count("\n## ") + outcome.markdown.startswith("## ") == 2
    assert "A GPU" in outcome.markdown


def test_half_written_files_are_named_and_left_out(report: Report, tmp_path: Path) -> None:
    paths = make_history(tmp_path / "runs", 3)
    paths[1].write_bytes(paths[1].read_bytes()[:2000])
    (tmp_path / "runs" / "notes.json").write_text('{"benchmarks": {}}')
    outcome = report(tmp_path / "runs")
    assert outcome.code == 0
    first, second = outcome.err.splitlines()
    assert paths[1].name in first
    assert "cut short" in first
    assert "notes.json: JSON of another kind" in second
    assert len(Page(outcome.html).tables["Runs"]) == 2
    assert paths[1].name in outcome.html
    paths[0].write_text("")
    outcome = report(paths[0])
    assert (outcome.code, outcome.html) == (2, "")
    assert outcome.err.endswith("empty\n")


def test_a_foreign_suite_is_shown_as_far_as_it_goes(report: Report, tmp_path: Path) -> None:
    run = make_plain(make_run())
    for index, bench in enumerate(run["benchmarks"]):
        bench |= {"name": f"test_sort[{index}]", "params": None, "group": None}
        del bench["stats"]["data"]
    outcome = report(save(run, tmp_path / "run.json"))
    assert outcome.code == 0, outcome.err
    rows = Page(outcome.html).tables["test_sort"]
    assert [row[:3] for row in rows] == [["test_sort[0]", "20", "0.412 s"], ["test_sort[1]", "20", "0.204 s"]]
    assert "| test\\_sort\\[0\\] |" in outcome.markdown


def test_null_and_missing_values_do_no_harm(report: Report, tmp_path: Path) -> None:
    run = make_run()
    info = info_of(run)
    for key in (*info,):
        if key not in ("schema_version", "case_definition"):
            info[key] = None
    run["benchmarks"][1]["stats"] = {"data": [], "median": None, "rounds": 0}
    run["benchmarks"][0]["extra_info"] = {"schema_version": SCHEMA_VERSION, "peak_memory_allocated_bytes": float("nan")}
    run["benchmarks"].append({"name": "test_empty"})
    run["machine_info"] = {"cpu": None}
    run["commit_info"] = None
    outcome = report(save(run, tmp_path / "run.json"))
    assert outcome.code == 0, outcome.err
    assert Page(outcome.html).tables[SINGLE][0][:6] == ["tiny.en", "4", *["not recorded"] * 2, "41.1", "not recorded"]


def test_cases_without_rounds_show_their_counters(report: Report, tmp_path: Path) -> None:
    run = make_run()
    for bench in run["benchmarks"]:
        bench["stats"] = {}
        bench["extra_info"]["control"] = None
    page = Page(report(save(run, tmp_path / "run.json")).html)
    assert page.tables["Exact counters of one round"][1][:3] == ["tiny.en · 4 · single", "flash", "5,451"]
    assert "Time per round" not in page.tables


def test_cases_that_were_counted_show_memory_and_counters(report: Report, tmp_path: Path) -> None:
    run = make_counted(make_run())
    info_of(run)["aten_op_count"] = 2725
    outcome = report(save(run, tmp_path / "run.json"))
    page = Page(outcome.html)
    assert page.tables[SINGLE][0][2:6] == ["0.180", "0.180", "not timed", "not timed"]
    counts = ["2,725", "0.50", "42,183,462,912", "1.00"]
    assert page.tables["Exact counters of one round"][1] == ["tiny.en · 4 · single", "flash", *counts]
    assert page.tables["Peak memory"][1][:3] == ["tiny.en · 4 · single", "flash", "179.7"]
    rows = [cells(line) for line in outcome.markdown.splitlines() if line.startswith("| tiny.en")]
    assert rows == [
        ["tiny.en", "4", "0.180", "0.180", "not timed", "not timed"],
        ["tiny.en", "4", "original", "5,451", "1.00", "42,183,462,912", "1.00", "1.00"],
        ["tiny.en", "4", "flash", *counts, "1.00"],
    ]
    assert "Speed-up" not in outcome.markdown


def test_memory_that_was_not_counted_is_not_missing(report: Report, tmp_path: Path) -> None:
    run = make_counted(make_run([Case("tiny.en", 4, "batched", name) for name in ("original", "flash")]))
    for entry in run["perf_cases"]:
        entry["extra_info"]["peak_memory_allocated_bytes"] = None
    outcome = report(save(run, tmp_path / "run.json"))
    row = next(line for line in outcome.markdown.splitlines() if line.startswith("| tiny.en"))
    assert cells(row)[2:] == ["not recorded", "not recorded", "not timed", "not timed"]


def test_a_run_of_counted_and_timed_cases_shows_both(report: Report, tmp_path: Path) -> None:
    run = make_run([Case("tiny.en", layers, "single", "flash") for layers in (4, 2)])
    counted = make_counted(make_run([Case("tiny.en", 2, "single", "flash")]))
    del run["benchmarks"][1]
    run["perf_cases"][1] = counted["perf_cases"][0]
    outcome = report(save(run, tmp_path / "run.json"))
    rows = [cells(line) for line in outcome.markdown.splitlines() if "| flash" in line]
    assert [(row[1], len(row), row[3]) for row in rows] == [("4", 8, "2.00"), ("2", 8, "5,451")]
    assert Page(outcome.html).tables[SINGLE][1][5] == "not timed"


def test_a_clock_that_is_not_the_walls_is_named(report: Report, tmp_path: Path) -> None:
    run = make_run()
    assert "timed by" not in report(save(run, tmp_path / "run.json")).markdown
    set_timer(run, "process_time")
    outcome = report(save(run, tmp_path / "run.json"))
    for text in (outcome.markdown.replace("\\", ""), outcome.html):
        assert ", timed by process_time, not in wall time" in text


def test_component_cases_are_no_cells_of_the_tables(report: Report, tmp_path: Path) -> None:
    run = make_run()
    run["benchmarks"].append(json.loads(json.dumps(run["benchmarks"][1]).replace("test_generate", "test_encoder")))
    run["perf_cases"].append(run["perf_cases"][0] | {"id": run["benchmarks"][2]["name"]})
    outcome = report(save(run, tmp_path / "run.json"))
    page = Page(outcome.html)
    assert page.tables["test_encoder"][0][0] == "test_encoder[tiny.en-4-single-flash]"
    assert len(page.tables[SINGLE]) == 13


def test_components_stand_beside_their_limits(report: Report, tmp_path: Path) -> None:
    run = make_run()
    bench = run["benchmarks"][1]
    bench["name"] = run["perf_cases"][1]["id"] = "test_decode_step[base.en-6-cache_64-flash]"
    bench["params"] = {"checkpoint": "base.en", "decoder_layers": 6, "setting": "cache_64", "implementation": "flash"}
    bench["stats"]["data"] = [0.02] * 20
    floor = {"limit_bytes": 240_000_000, "limit_flops": 120_000_000, "floor_seconds": 0.01, "fraction_of_limit": 0.5}
    bench["extra_info"] |= floor
    run["machine_info"]["limits"] = {
        "memory_bytes_per_second": 24e9,
        "memory_way": "sum",
        "flops_per_second": {"float32": 200e9},
        "flops_ways": {"float32": "linear"},
    }
    outcome = report(save(run, tmp_path / "run.json"))
    page = Page(outcome.html)
    assert page.tables["test_decode_step"][0][-2:] == ["0.50", "0.0200"]
    (line,) = (cells(line) for line in outcome.markdown.splitlines() if "decode" in line)
    assert line[-2:] == ["0.50", "0.0200"]
    assert page.tables["Components and their floors"] == [
        ["decode_step base.en 6 cache_64", "flash", "20.0 ms", "10.0 ms", "0.50", "240,000,000", "120,000,000"]
    ]
    assert page.tables["The machine's limits, measured in this run"] == [
        ["memory, GB/s", "24.0", "sum"],
        ["matrix products in float32, GFLOP/s", "200.0", "linear"],
    ]


def test_the_machines_state_is_told(report: Report, tmp_path: Path) -> None:
    run = make_run(rounds=3)
    states = [bench["extra_info"]["device_state"] for bench in run["benchmarks"]]
    states[0]["rounds"]["foreign_cpu_cores"] = [0.0, 0.4, 0.02]
    page = Page(report(save(run, tmp_path / "run.json")).html)
    assert [row[1] for row in page.tables["Beside the rounds"]] == ["0.00 / 0.02 / 0.40", "0.05"]
    states[1]["gpu"] = make_gpu_samples(sm_clock_hz=[345_000_000, None, 1_980_000_000])
    page = Page(report(save(run, tmp_path / "run.json")).html)
    assert [row[2:] for row in page.tables["Beside the rounds"]] == [["", ""], ["345 / 1162 / 1980", "40"]]
    states[0] |= {"rounds": "lost"}
    states[1] |= {"rounds": {"foreign_cpu_cores": [None, "x", 10**400]}, "gpu": []}
    page = Page(report(save(run, tmp_path / "run.json")).html)
    assert "Beside the rounds" not in page.tables


def test_words_that_were_wrong_are_told(report: Report, tmp_path: Path) -> None:
    run = make_run()
    bench = run["benchmarks"][1]
    bench["name"] = run["perf_cases"][1]["id"] = "test_accuracy[tiny.en-4-transcribe-flash]"
    bench["params"]["setting"] = "transcribe"
    bench["extra_info"]["word_error_rate"] = 0.25
    outcome = report(save(run, tmp_path / "run.json"))
    assert Page(outcome.html).tables["test_accuracy"][0][-1] == "25.0 %"
    assert "| Word error rate |" in outcome.markdown
    assert "25.0 % |" in outcome.markdown


def test_what_did_not_pass_is_said(report: Report, tmp_path: Path) -> None:
    run = make_run()
    set_outcome(run, FLASH, "failed", "AssertionError: tokens differ")
    outcome = report(save(run, tmp_path / "run.json"))
    assert cells(next(line for line in outcome.markdown.splitlines() if "tiny.en" in line))[3] == "failed"
    assert "AssertionError: tokens differ" in outcome.markdown
    assert "AssertionError: tokens differ" in outcome.html
    assert Page(outcome.html).tables[SINGLE][0][3] == "failed"


def test_a_run_with_no_control_shows_times_alone(report: Report, tmp_path: Path) -> None:
    run = make_run()
    remove(run, FLASH)
    page = Page(report(save(run, tmp_path / "run.json")).html)
    assert page.tables["Time per round"][0][:3] == ["tiny.en · 4 · single", "original", "20"]
    assert [row[0] for row in page.tables["Peak memory"]] == ["tiny.en · 4 · single"]


def test_references_are_those_of_compare(report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = tmp_path / "runs"
    paths = make_history(storage, 3)
    assert promote.main(["latest", "good", "--storage", str(storage)]) == 0
    capsys.readouterr()
    for reference in ("2", paths[1].name[5:15], "latest~1"):
        outcome = report(reference, "--storage", storage)
        assert Page(outcome.html).tables["Runs"][0][0] == paths[1].name
    assert Page(report("good", "--storage", storage).html).tables["Runs"][0][0] == "good.json"
    rows = Page(report("--storage", storage).html).tables["Runs"]
    assert [row[0] for row in rows] == [path.name for path in reversed(paths)]
    assert [row[4] for row in rows] == ["good", "", ""]


def test_without_an_output_the_markdown_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = make_history(tmp_path / "runs", 1)
    assert command.main([str(path)]) == 0
    assert capsys.readouterr().out.startswith("## A CPU, 2 threads")


def test_an_output_never_replaces_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = make_history(tmp_path / "runs", 1)
    before = path.read_bytes()
    assert command.main([str(path), "--html", str(path)]) == 2
    assert command.main([str(path), "--html", str(tmp_path / "a"), "--markdown", str(tmp_path / "a")]) == 2
    assert command.main([str(path), "--html", str(tmp_path)]) == 2
    assert path.read_bytes() == before
    assert capsys.readouterr().err.count("\n") == 3


def test_another_schema_is_left_out(report: Report, tmp_path: Path) -> None:
    run = make_run()
    info_of(run, ORIGINAL)["schema_version"] = 1
    outcome = report(save(run, tmp_path / "run.json"))
    assert outcome.code == 2
    assert "schema_version 1" in outcome.err
