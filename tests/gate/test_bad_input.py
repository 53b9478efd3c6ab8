"""Bad input: exit 2, one line on standard error, nothing lost."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perf_tests.gate import command
from perf_tests.runs import merge, promote
from tests.make_runs import (
    FLASH,
    ORIGINAL,
    add_yardstick,
    bench_of,
    info_of,
    make_plain,
    make_run,
    remove,
    save,
)

from .conftest import Outcome, refused

Compare = Callable[..., Outcome]
Run = dict[str, Any]


WHOLE = json.dumps(make_run(seed=3))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("", "empty"),
        ("  \n", "empty"),
        (WHOLE[: len(WHOLE) // 2], "cut short"),
        (WHOLE[:-1], "cut short"),
        ("a,b\n1,2\n", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("1" * 5000, "not JSON"),
        ("[]", "another kind"),
        ("null", "another kind"),
        ("{}", "another kind"),
        ('{"benchmarks": {}}', "another kind"),
        ('{"benchmarks": [1]}', "not a benchmark"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
@pytest.mark.parametrize("side", ["base", "head"])
def test_a_file_that_is_no_run(
    side: str, content: str | bytes | None, words: str, run_compare: Compare, head: Run, tmp_path: Path
) -> None:
    good, bad = save(head, tmp_path / "good.json"), tmp_path / "bad.json"
    if content is not None:
        bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(run_compare(*((bad, good) if side == "base" else (good, bad))), words, "bad.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_path_that_is_no_file(run_compare: Compare, head: Run, tmp_path: Path) -> None:
    good = save(head, tmp_path / "good.json")
    os.mkfifo(tmp_path / "pipe.json")
    refused(run_compare(tmp_path, good), "not a file")
    refused(run_compare(tmp_path / "pipe.json", good), "not a file")
    refused(run_compare("/\0.json", good))
    refused(run_compare("/" + "x" * 5000, good))


def test_another_schema_version(compare: Compare, base: Run, head: Run) -> None:
    info_of(head)["schema_version"] = 1
    refused(compare(base, head), "schema_version 1, and only 2 is read here", "head.json")


@pytest.mark.parametrize("key", ["perf_counted", "perf_resumed"])
def test_a_run_of_version_1_in_which_nothing_was_measured(compare: Compare, base: Run, head: Run, key: str) -> None:
    head |= {"benchmarks": [], key: []}
    refused(compare(base, head), f"{key}: schema_version 1, and only 2 is read here", "head.json")


def test_no_case_in_common(compare: Compare, base: Run, head: Run) -> None:
    remove(base, FLASH)
    remove(head, ORIGINAL)
    refused(compare(base, head), "no case in common")
    base["benchmarks"], base["perf_cases"] = [], []
    refused(compare(base, head), "no case in common")


@pytest.mark.parametrize("seconds", [math.nan, 0, 0.0, -1.0, math.inf, 1e-300, 10**400, "0.2", None, True])
@pytest.mark.parametrize("where", ["rounds", "control", "yardstick"])
def test_a_time_that_is_none(where: str, seconds: object, compare: Compare, base: Run, head: Run) -> None:
    add_yardstick(head)
    places = {
        "rounds": bench_of(head, FLASH)["stats"]["data"],
        "control": info_of(head)["control"]["rounds_seconds"],
        "yardstick": info_of(head)["yardstick"]["rounds_seconds"]["decoding"],
    }
    places[where][3] = seconds
    refused(compare(base, head), "a round", FLASH)
    assert compare(base, head, "--only", "memory").code == 0


@pytest.mark.parametrize("name", [ORIGINAL, FLASH])
def test_a_single_round(name: str, compare: Compare, base: Run, head: Run) -> None:
    del bench_of(head, name)["stats"]["data"][1:]
    refused(compare(base, head), name, "one round", "--only memory")


def test_rounds_that_are_not_there_or_do_not_pair(compare: Compare, base: Run, head: Run) -> None:
    control = info_of(head)["control"]["rounds_seconds"]
    control.pop()
    refused(compare(base, head), "19 control rounds cannot pair with 20")
    control.append(0.4)
    add_yardstick(head)
    info_of(head)["yardstick"]["rounds_seconds"]["decoding"].pop()
    refused(compare(base, head), "19 yardstick decoding rounds cannot pair with 20")
    del bench_of(head, FLASH)["stats"]["data"]
    refused(compare(base, head), "no raw rounds")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peak_memory_allocated_bytes", -1),
        ("peak_memory_allocated_bytes", 1.5),
        ("aten_op_count", "many"),
        ("flop_count", 2**70),
        ("aten_op_count", True),
        ("parity", []),
        ("parity", {}),
        ("parity", {"max_abs_error": "small", "bound": 1}),
        ("control", [1, 2]),
        ("yardstick", [1, 2]),
        ("yardstick", {}),
        ("yardstick", {"version": 1, "rounds_seconds": {}}),
        ("yardstick", {"version": 1, "rounds_seconds": [0.02] * 20}),
        ("yardstick", {"version": 1, "rounds_seconds": {"decoding": 0.02}}),
        ("yardstick", {"version": "1", "rounds_seconds": {"decoding": [0.02] * 20}}),
        ("yardstick", {"version": None, "rounds_seconds": {"decoding": [0.02] * 20}}),
        ("case_definition", None),
        ("fraction_of_limit", "half"),
        ("device_state", {"rounds": {"begin_seconds": [], "end_seconds": [], "foreign_cpu_cores": []}}),
        ("device_state", {"rounds": {"begin_seconds": [0.1] * 20}}),
        ("device_state", {"gpu": {"throttle_reasons": 4}}),
        ("device_state", {"gpu": {"foreign_processes": [0, "one"]}}),
        ("device_state", {"gpu": {"foreign_processes": [0, -1]}}),
    ],
)
def test_values_of_another_kind(key: str, value: object, compare: Compare, base: Run, head: Run) -> None:
    info = info_of(head)
    info[key] = info[key] | value if key == "device_state" else value
    refused(compare(base, head), FLASH, "head.json")


def test_perf_cases_that_contradict(compare: Compare, base: Run, head: Run) -> None:
    head["perf_cases"].pop()
    refused(compare(base, head), "measured, but not in perf_cases")
    head["perf_cases"].append(head["perf_cases"][0])
    refused(compare(base, head), "twice in perf_cases")
    head["perf_cases"][1] = {"id": FLASH, "outcome": "lost", "reason": None, "session": 0}
    refused(compare(base, head), "'lost' is none of")
    head["perf_cases"] = "all"
    refused(compare(base, head), "not a list")
    del head["perf_cases"]
    refused(compare(base, head), "no perf_cases")


def test_a_case_that_was_measured_twice(compare: Compare, base: Run, head: Run) -> None:
    head["benchmarks"].append(head["benchmarks"][0])
    refused(compare(base, head), "measured twice")


@pytest.mark.parametrize("with_data", [True, False])
def test_plain_pytest_benchmark(with_data: bool, compare: Compare, base: Run, head: Run) -> None:
    for run in (make_plain(base), make_plain(head)):
        if not with_data:
            for bench in run["benchmarks"]:
                del bench["stats"]["data"]
    outcome = compare(base, head)
    assert outcome.code == 2
    assert "BASE and HEAD: plain pytest-benchmark without the suite's keys: uncorrected times" in outcome.out
    assert outcome.verdict(FLASH) == "AMBIGUOUS"
    assert "uncorrected time" in outcome.why(FLASH)


def test_plain_against_the_suites(compare: Compare, base: Run, head: Run) -> None:
    outcome = compare(base, make_plain(head))
    assert outcome.code == 2
    assert outcome.verdict(FLASH) == "MISSING"
    outcome = compare(make_plain(make_run(seed=4)), base)
    assert outcome.code == 2
    assert outcome.verdict(FLASH) != "PASS"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["one"],
        ["a", "b", "c"],
        ["a", "b", "--mood"],
        ["a", "b", "--time-threshold", "-1"],
        ["a", "b", "--memory-threshold", "nan"],
        ["a", "b", "--counters-threshold", "lots"],
        ["a", "b", "--only", "mood"],
    ],
)
def test_what_was_typed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "[tool.perf_tests",
        "[tool]\nperf_tests = 1",
        "[tool.perf_tests]\nmood = 1",
        "[tool.perf_tests]\naccept = 1",
        "[tool.perf_tests]\naccept = [1]",
        '[[tool.perf_tests.accept]]\ncase = "*"\nmetric = "memory"\nlimit = 1',
        '[[tool.perf_tests.accept]]\ncase = "*"\nmetric = "memory"\nlimit = 1\nreason = " "',
        '[[tool.perf_tests.accept]]\ncase = "*"\nmetric = "time"\nlimit = 1\nreason = "meant"',
        '[[tool.perf_tests.accept]]\ncase = "*"\nmetric = "memory"\nlimit = -1\nreason = "meant"',
        '[[tool.perf_tests.accept]]\ncase = "*"\nmetric = "memory"\nlimit = nan\nreason = "meant"',
        '[[tool.perf_tests.thresholds]]\ncase = 1\nmetric = "time"\npercent = 1',
        '[[tool.perf_tests.thresholds]]\ncase = "*"\nmetric = "time"\npercent = "1"',
        '[[tool.perf_tests.thresholds]]\ncase = "*"\nmetric = "time"\npercent = 1\nmood = 1',
        '[[tool.perf_tests.thresholds]]\ncase = "*"\nmetric = "time"\nleast = 0.5',
        '[[tool.perf_tests.thresholds]]\ncase = "*"\nmetric = "fraction_of_limit"\npercent = 50',
    ],
)
def test_a_broken_config(text: str, compare: Compare, base: Run, head: Run, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    refused(compare(base, head, "--config", path), "settings.toml")


def test_a_config_that_is_not_there(compare: Compare, base: Run, head: Run, tmp_path: Path) -> None:
    refused(compare(base, head, "--config", tmp_path / "none.toml"), "none.toml")


@pytest.mark.parametrize("option", ["--json", "--markdown"])
def test_a_report_never_replaces_a_run(
    option: str, base: Run, head: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [save(run, tmp_path / name) for run, name in ((base, "base.json"), (head, "head.json"))]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        assert command.main([*map(str, paths), option, str(path)]) == 2
        assert "a saved run" in capsys.readouterr().err
    assert [path.read_bytes() for path in paths] == before


def test_a_report_that_cannot_be_written(
    base: Run, head: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(save(run, tmp_path / name)) for run, name in ((base, "base.json"), (head, "head.json"))]
    assert command.main([*paths, "--json", str(tmp_path)]) == 2
    assert command.main([*paths, "--markdown", str(tmp_path / "base.json" / "report.md")]) == 2
    assert command.main([*paths, "--json", str(tmp_path / "r"), "--markdown", str(tmp_path / "r")]) == 2
    assert capsys.readouterr().err.count("\n") == 3


@pytest.mark.parametrize("main", [promote.main, merge.main])
def test_the_other_commands_refuse_in_one_line(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text("{")
    for arguments in ([], ["latest", "main"], [str(tmp_path / "new.json"), str(tmp_path / "bad.json")]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "new.json").exists()
