"""Over generated runs: no traceback, no PASS for a case that is missing from either side, and a report that agrees."""

import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perf_tests.gate import command
from perf_tests.matrix.cases import Case
from perf_tests.runs import merge, promote
from tests.make_runs import add_yardstick, disturb, make_counted, make_run, remove, set_outcome, slow_down

CASES = [Case("tiny.en", layers, "single", name) for layers in (4, 2) for name in ("original", "flash")]
IDS = [f"test_generate[{case.id}]" for case in CASES]
GOOD = {"PASS", "IMPROVED"}
ANY = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=int(os.environ.get("PERF_PROPERTY_EXAMPLES", "40")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

states = st.sampled_from(["passed", "passed", "passed", "failed", "skipped", "unmeasured", "absent"])
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, 2**63, -(2**63), 0])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["\ud800", "\x00", "[red]", "../..", "passed", "flash"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    """A run of some of the cases, each ended in some way, with rounds and figures that vary."""
    run = make_run(CASES, seed=draw(st.integers(0, 50)), rounds=draw(st.sampled_from([2, 3, 5, 8, 20])))
    for name in IDS:
        info = next(bench for bench in run["benchmarks"] if bench["name"] == name)["extra_info"]
        for key in ("peak_memory_allocated_bytes", "aten_op_count", "flop_count"):
            info[key] = draw(st.sampled_from([info[key], info[key], info[key] + 1, 2 * info[key], 0, None]))
        disturb(
            run, cores=draw(st.sampled_from([0.0, 0.1, 5.0, None])), share=draw(st.sampled_from([0.2, 1])), name=name
        )
        slow_down(run, draw(st.sampled_from([1.0, 1.0, 1.05, 0.8, 1e6])), name)
        if info["control"] is not None and (version := draw(st.sampled_from([None, 1, 1, 2]))) is not None:
            add_yardstick(run, as_slow_as=draw(st.sampled_from([1.0, 1.2, 1e6])), version=version, name=name)
        match draw(states):
            case "absent":
                remove(run, name)
            case "unmeasured":
                run["benchmarks"] = [bench for bench in run["benchmarks"] if bench["name"] != name]
            case "failed" | "skipped" as state:
                set_outcome(run, name, state, draw(st.none() | st.text(max_size=20)))
    return make_counted(run) if draw(st.integers(0, 3)) == 3 else run


@st.composite
def broken(draw: st.DrawFn, kinds: st.SearchStrategy[dict[str, Any]]) -> Any:
    """A run with something in it replaced by, or removed for, anything that JSON can hold."""
    run = draw(kinds)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = run
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = draw(st.sampled_from(keys))
            deeper = isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 3))
            if not deeper:
                break
            place = place[key]
        if draw(st.booleans()):
            place[key] = draw(json_values)
        else:
            del place[key]
        if not run:
            break
    return run


def run_command(base: Any, head: Any, *arguments: str, raw: bool = False) -> tuple[int, dict[str, Any], str]:
    """Compare two runs; return exit code, report and Markdown."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / "base.json", folder / "head.json"]
        for path, run in zip(paths, (base, head), strict=True):
            path.write_bytes(run if raw else json.dumps(run).encode())
        before = [path.read_bytes() for path in paths]
        outputs = ["--json", str(folder / "r.json"), "--markdown", str(folder / "r.md")]
        error = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(error):
            code = command.main([*map(str, paths), *outputs, *arguments])
        assert code in (0, 1, 2)
        assert [path.read_bytes() for path in paths] == before
        assert error.getvalue().count("\n") == (not out.getvalue())
        report = json.loads((folder / "r.json").read_text())
        markdown = folder / "r.md"
        return code, report, markdown.read_text(encoding="utf-8") if markdown.exists() else ""


def check(base: Any, head: Any, code: int, report: dict[str, Any]) -> None:
    """What must hold whatever the runs are."""
    assert report["exit_code"] == code
    verdicts = {case["id"]: case["verdict"] for case in report["cases"]}
    if report["verdict"] == "REFUSED":
        assert code == 2
        assert not verdicts
        return
    names = [
        {bench["name"] for bench in run["benchmarks"]}
        | {entry["id"] for entry in run.get("perf_cases", ()) if "extra_info" in entry}
        for run in (base, head)
    ]
    for name, verdict in verdicts.items():
        if not all(name in measured for measured in names):
            assert verdict not in GOOD
    listed = [
        {entry["id"] for entry in run.get("perf_cases", [])} | n for run, n in zip((base, head), names, strict=True)
    ]
    assert set(verdicts) == set.union(*listed)
    for name in listed[0] - names[1]:
        assert verdicts[name] in ("MISSING", "FAILED")
        assert code != 0
    if code == 0:
        assert set(verdicts.values()) <= {"PASS", "IMPROVED", "NEW", "AMBIGUOUS"}
    if code == 1:
        assert {"REGRESSED", "MISSING", "FAILED"} & set(verdicts.values())


@ANY
@given(base=runs(), head=runs())
def test_runs_of_all_kinds(base: Any, head: Any) -> None:
    code, report, _ = run_command(base, head)
    check(base, head, code, report)


@ANY
@given(base=runs(), head=broken(runs()), swap=st.booleans())
def test_broken_runs(base: Any, head: Any, swap: bool) -> None:
    if swap:
        base, head = head, base
    code, report, _ = run_command(base, head)
    check(base, head, code, report)
    code, report, _ = run_command(base, head, "--only", "memory", "--only", "counters", "--only", "parity")
    check(base, head, code, report)


@ANY
@given(value=json_values)
def test_any_json_is_refused(value: Any) -> None:
    code, report, _ = run_command(value, make_run(seed=1))
    assert code == 2
    assert report["verdict"] == "REFUSED"


@ANY
@given(base=st.binary(max_size=50), head=st.binary(max_size=50))
def test_any_bytes_are_refused(base: bytes, head: bytes) -> None:
    code, report, _ = run_command(base, head, raw=True)
    assert code == 2
    assert report["verdict"] == "REFUSED"


@ANY
@given(text=st.text(), seed=st.integers(1, 5))
def test_any_text_in_a_name(text: str, seed: int) -> None:
    base, head = make_run(seed=seed), make_run(seed=seed + 10)
    for run in (base, head):
        run["benchmarks"][1]["name"] = run["perf_cases"][1]["id"] = text
    set_outcome(head, text, "failed", text)
    code, report, markdown = run_command(base, head)
    assert code == 1
    assert next(case for case in report["cases"] if case["id"] == text)["verdict"] == "FAILED"
    assert sum(line.startswith("| **FAILED** |") for line in markdown.split("\n")) == 1


@ANY
@given(
    arguments=st.lists(
        st.text(st.characters(exclude_characters="/\\"), max_size=10)
        | st.sampled_from(["--json", "--only", "latest", "--storage", "1"])
    )
)
@pytest.mark.parametrize("main", [command.main, promote.main, merge.main])
def test_any_arguments(main: Any, arguments: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as error:
        if {"-h", "--help"} & {*arguments}:
            return
        assert main(arguments) == 2
    assert error.getvalue().count("\n") == 1
