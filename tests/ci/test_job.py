"""The steps of the GPU job, here on the CPU."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perf_tests.ci import command
from perf_tests.ci.command import PAGE, REPORT, VERDICTS, count_shards
from perf_tests.ci.revisions import NOTE, Base
from perf_tests.common.errors import BadInputError
from perf_tests.common.package_hash import PACKAGE
from perf_tests.gate.comparison import compare_runs
from perf_tests.gate.config import read_config
from perf_tests.gate.thresholds import Rules
from perf_tests.matrix.cases import Case
from perf_tests.runs.saved import read_run
from tests.ab.conftest import commit, git
from tests.make_runs import CELL, FLASH, info_of, make_run, save, slow_down
from tests.running import ROOT, run


def verdicts_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / VERDICTS).read_text())


def choose(monkeypatch: pytest.MonkeyPatch, base: str, note: str = "") -> None:
    """Let this be the base, of a package of its own."""
    monkeypatch.setattr(command, "choose_base", lambda *arguments, **options: Base(base, note))
    monkeypatch.setattr(command, "check_sides", lambda *sides: None)


def test_what_cannot_be_measured_leaves_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert command.main(["measure", "--out", str(tmp_path / "out"), "--base", "no <b>such</b> commit"]) == 2
    assert "no such commit here" in capsys.readouterr().err
    assert verdicts_of(tmp_path / "out")["verdict"] == "REFUSED"
    for report in (tmp_path / "out" / REPORT, tmp_path / "summary.md"):
        assert "### Could not judge" in report.read_text()
        assert "<b>" not in report.read_text()


def test_a_measurement_that_died_leaves_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "HEAD")
    for end in (lambda arguments: 0, lambda arguments: [][0]):  # says that all is well, and wrote nothing; breaks down
        monkeypatch.setattr(command.ab, "main", end)
        assert command.main(["measure", "--out", str(tmp_path)]) == 2
    assert verdicts_of(tmp_path)["verdict"] == "REFUSED"


def test_a_measurement_that_died_has_no_other_ones_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "HEAD")
    monkeypatch.setattr(command.ab, "main", lambda arguments: 1)
    leave(tmp_path)
    process = tmp_path / "001-base-control-before.json"
    for path in (tmp_path / "base.json", tmp_path / "head.json", process):
        save(make_run([Case(*CELL, "flash")]), path)
    for name in (REPORT, PAGE):
        (tmp_path / name).write_text("PASS")
    assert command.main(["measure", "--out", str(tmp_path)]) == 1
    assert verdicts_of(tmp_path)["verdict"] == "REFUSED"
    assert "PASS" not in (tmp_path / REPORT).read_text()
    assert not (tmp_path / PAGE).exists()
    assert {*tmp_path.glob("*.json")} == {tmp_path / VERDICTS, process}  # the same job goes on with it


def test_inputs_reach_pytest_as_single_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    choose(monkeypatch, "0123", "BASE is 0123, as it happens")
    monkeypatch.setattr(command.ab, "main", lambda arguments: called.append(arguments) or 0)
    hostile = "--co; $(rm) --perf-preset=full"
    options = ["--filter", hostile, "--preset", "quick", "--shard", "2", "--shards", "[1, 2]", "--budget", "5"]
    command.main(["measure", "--out", str(tmp_path), *options, "--strict", "--", "--perf-rounds", "3"])
    ab, given = called[0], called[0][called[0].index("--") + 1 :]
    assert ab[:2] == ["0123", "."]
    assert "--note=BASE is 0123, as it happens" in ab
    assert ab[ab.index("--budget") : ab.index("--budget") + 2] == ["--budget", "5"]
    assert "--strict" in ab
    assert f"-k={hostile}" in given
    assert "--perf-preset=quick" in given
    assert given[-6:] == ["--splits", "2", "--group", "2", "--perf-rounds", "3"]


@pytest.mark.parametrize("shards", ["0", "-1", "x", "[2]", "[1, 3]", "[]", "{}", "true", "1.5", "1e9", '["1"]'])
def test_shards_that_cannot_be_are_refused(shards: str) -> None:
    with pytest.raises(BadInputError, match="--shards"):
        count_shards(shards)


@pytest.mark.parametrize("shard", ["0", "3", "x", "1/2", "٢"])
def test_a_shard_that_cannot_be_is_refused(shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "0123", "BASE is 0123, as it happens")
    assert command.main(["measure", "--out", str(tmp_path), "--shard", shard, "--shards", "2"]) == 2
    assert "none of 1 to 2" in verdicts_of(tmp_path)["notes"][0]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of a job, as `measure` leaves them."""
    for number, cell in enumerate((CELL, ("base.en", 6, "single")), start=1):
        folder = tmp_path / "shards" / f"perf-shard-gpu-{number}"
        folder.mkdir(parents=True)
        for seed, side in enumerate(("base", "head")):
            save(make_run([Case(*cell, "original"), Case(*cell, "flash")], seed=seed), folder / f"{side}.json")
        (folder / VERDICTS).write_text('{"verdict": "PASS", "exit_code": 0, "cases": [], "notes": []}')
        (folder / REPORT).write_text("### PASS\n")
    return tmp_path / "shards"


def join(shards: Path, out: Path, count: int) -> int:
    return command.main(["report", "--out", str(out), "--shards", str(count), str(shards)])


def test_shards_become_one_comparison(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert join(shards, tmp_path / "out", 2) == 0
    cases = {case["id"] for case in verdicts_of(tmp_path / "out")["cases"]}
    assert {case.partition("[")[2].partition("-")[0] for case in cases} == {"tiny.en", "base.en"}
    assert "tiny.en-4-single-flash" in (tmp_path / "out" / REPORT).read_text()


def test_shards_are_judged_as_an_unsharded_job_is(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the thresholds of `pyproject.toml`, and else by what is allowed where several processes measured."""
    monkeypatch.chdir(tmp_path)
    for folder in shards.iterdir():
        for side, factor in (("base", 1.0), ("head", 1.05)):
            run = json.loads((folder / f"{side}.json").read_text())
            (name,) = (bench["name"] for bench in run["benchmarks"] if bench["name"].endswith("-flash]"))
            info_of(run, name)["process_rounds"] = [5, 5, 5, 5]
            slow_down(run, factor, name)
            save(run, folder / f"{side}.json")
    for config in ("", '[[tool.perf_tests.thresholds]]\ncase = "*tiny.en-4-*"\nmetric = "time"\npercent = 10\n'):
        (tmp_path / "pyproject.toml").write_text(config)
        rules = Rules(patterns=read_config(tmp_path / "pyproject.toml").thresholds)
        alone = {}
        for folder in shards.iterdir():
            base, head = (read_run(folder / f"{side}.json") for side in ("base", "head"))
            alone |= {case.id: case.verdict for case in compare_runs(base, head, rules).cases}
        join(shards, tmp_path / "out", 2)
        joined = {case["id"]: case["verdict"] for case in verdicts_of(tmp_path / "out")["cases"]}
        assert joined == alone
        assert joined[FLASH] == ("PASS" if config else "REGRESSED")
        assert joined["test_generate[base.en-6-single-flash]"] == "REGRESSED"


@pytest.mark.parametrize("strict", [False, True])
def test_what_shards_leave_open_fails_a_strict_job(
    strict: bool, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    folder = shards / "perf-shard-gpu-1"
    for side in ("base", "head"):
        run = json.loads((folder / f"{side}.json").read_text())
        control = info_of(run)["control"]
        control["rounds_seconds"] = [seconds * (4 if side == "head" else 1) for seconds in control["rounds_seconds"]]
        save(run, folder / f"{side}.json")
    out = tmp_path / "out"
    options = ["--strict"] if strict else []
    assert command.main(["report", "--out", str(out), "--shards", "2", *options, str(shards)]) == strict
    assert f"not judged: {FLASH}; what would settle it: both sides measured anew" in str(verdicts_of(out)["notes"])
    assert "not judged" in (out / REPORT).read_text()


def leave(folder: Path, **verdicts: Any) -> None:
    (folder / VERDICTS).write_text(json.dumps({"verdict": "PASS", "exit_code": 0, "cases": []} | verdicts))


def test_the_joined_report_says_how_the_base_was_chosen(shards: Path, tmp_path: Path) -> None:
    leave(shards / "perf-shard-gpu-1", notes=["something", f"{NOTE}0123, as it happens"])
    assert join(shards, tmp_path / "out", 2) == 0
    assert verdicts_of(tmp_path / "out")["notes"][0] == f"{NOTE}0123, as it happens"
    assert "something" not in verdicts_of(tmp_path / "out")["notes"]


def test_unchanged_shards_stay_unchanged(shards: Path, tmp_path: Path) -> None:
    for folder in shards.iterdir():
        leave(folder, verdict="UNCHANGED", notes=["why"])
        for side in ("base", "head"):
            (folder / f"{side}.json").unlink()
    assert join(shards, tmp_path / "out", 2) == 0
    assert verdicts_of(tmp_path / "out")["verdict"] == "UNCHANGED"
    assert (tmp_path / "out" / REPORT).exists()


def test_one_unchanged_shard_is_no_pass(shards: Path, tmp_path: Path) -> None:
    leave(shards / "perf-shard-gpu-2", verdict="UNCHANGED")
    assert join(shards, tmp_path / "out", 2) == 2
    assert "perf-shard-gpu-2: nothing to compare, unlike in others" in verdicts_of(tmp_path / "out")["notes"][0]


@pytest.mark.parametrize("text", ["", "[]", '{"verdict": "PASS"}', '{"verdict": "PASS", "exit_code": null}'])
def test_a_broken_shard_is_no_pass(text: str, shards: Path, tmp_path: Path) -> None:
    (shards / "perf-shard-gpu-1" / VERDICTS).write_text(text)
    assert join(shards, tmp_path / "out", 2) == 2
    assert "perf-shard-gpu-1: verdicts.json is broken" in verdicts_of(tmp_path / "out")["notes"][0]


def test_a_missing_shard_is_no_pass(shards: Path, tmp_path: Path) -> None:
    shutil.rmtree(shards / "perf-shard-gpu-2")
    assert join(shards, tmp_path / "out", 2) == 2
    assert verdicts_of(tmp_path / "out")["notes"] == ["1 of 2 shards brought a result; see the jobs of the others"]


def test_a_shard_without_runs_is_no_pass(shards: Path, tmp_path: Path) -> None:
    (shards / "perf-shard-gpu-2" / "head.json").unlink()
    assert join(shards, tmp_path / "out", 2) == 2
    assert verdicts_of(tmp_path / "out")["verdict"] == "REFUSED"


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_single_shard_keeps_its_verdict(code: int, shards: Path, tmp_path: Path) -> None:
    shutil.rmtree(shards / "perf-shard-gpu-2")
    (shards / "perf-shard-gpu-1" / VERDICTS).write_text(json.dumps({"verdict": "X", "exit_code": code, "cases": []}))
    assert join(shards, tmp_path / "out", 1) == code
    assert verdicts_of(tmp_path / "out")["verdict"] == "X"
    assert (tmp_path / "out" / "head.json").exists()


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose last commit changes words alone."""
    tree = tmp_path / "words"
    for name in (f"{PACKAGE}/__init__.py", "perf_tests/__init__.py"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text("")
    git(tree, "init", "--quiet")
    commit(tree, "code")
    (tree / "README.md").write_text("Words.\n")
    commit(tree, "words")
    monkeypatch.chdir(tree)
    return tree


@pytest.mark.parametrize("step", ["measure", "counters"])
@pytest.mark.parametrize("head", [".", "HEAD"])
def test_one_package_is_refused(
    step: str, head: str, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([step, "--out", str(tmp_path / "out"), "--base", "HEAD~1", "--head", head]) == 2
    assert "the same package" in capsys.readouterr().err
    assert verdicts_of(tmp_path / "out")["verdict"] == "REFUSED"
    assert (
        (tmp_path / "out" / REPORT).read_text().startswith("### Could not judge\n\nBASE and HEAD are the same package")
    )


@pytest.mark.parametrize("step", ["measure", "counters"])
def test_an_unchanged_package_can_be_no_failure(
    step: str, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is looked at or measured: a busy GPU does not matter."""
    monkeypatch.delattr(command, "_run_ab")
    monkeypatch.delattr(command, "check_machine")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    out = tmp_path / "out"
    assert command.main([step, "--out", str(out), "--base", 40 * "0", "--only-changed"]) == 0
    verdicts = verdicts_of(out)
    assert (verdicts["verdict"], verdicts["exit_code"], verdicts["cases"]) == ("UNCHANGED", 0, [])
    parent = git(words, "rev-parse", "HEAD~1")
    assert verdicts["notes"][0] == f"BASE is {parent[:10]}, HEAD's parent: the branch is new"
    assert "the same package" in verdicts["notes"][1]
    report = (out / REPORT).read_text()
    assert report.startswith(f"### Nothing to compare\n\nBASE is {parent[:10]}, HEAD's parent")
    assert "the same package" in report
    assert "PASS" not in report
    assert (tmp_path / "summary.md").read_text().strip() == report.strip()


def test_what_changed_is_measured_all_the_same(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Base] = []
    monkeypatch.setattr(command, "_run_ab", lambda base, *arguments: called.append(base) or 0)
    monkeypatch.setattr(command, "check_machine", lambda device: None)
    (words / PACKAGE / "__init__.py").write_text("# Another word.\n")
    assert command.main(["measure", "--out", str(tmp_path / "out"), "--base", "HEAD~1", "--only-changed"]) == 0
    assert called == [Base(git(words, "rev-parse", "HEAD~1"))]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone of this checkout with one more commit, a comment, which changes nothing that is measured."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: there are no two commits to compare")
    tree = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", ROOT.as_uri(), tree], check=True)
    with (tree / PACKAGE / "__init__.py").open("a") as file:
        file.write("# Another word.\n")
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, "commit", "--quiet", "--all", "--message", "x"], cwd=tree, check=True)
    return tree


def run_step(checkout: Path, summary: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a step in `checkout`, over a miniature of tiny.en."""
    suite = ("-p", "tests.plugins.small_checkpoints", "--perf-checkpoint", "tiny.en", "--perf-decoder-layers", "2")
    suite += ("--perf-implementation", "flash")
    commits = ("--base", "HEAD~1", "--head", "HEAD", "--filter", "single")
    step, *own = arguments
    command = [sys.executable, "-m", "perf_tests", "ci", step, *commits, *own, *suite]
    return run(command, cwd=checkout, PYTHONPATH=str(checkout), GITHUB_STEP_SUMMARY=str(summary))


@pytest.mark.slow
def test_the_job_from_two_commits_to_the_page(checkout: Path, tmp_path: Path) -> None:
    out, summary = tmp_path / "out", tmp_path / "summary.md"
    done = run_step(checkout, summary, "measure", "--out", str(out), "--processes", "2", "--", "--perf-rounds", "3")
    assert done.returncode == 0, done.stdout + done.stderr  # unchanged code: PASS, or AMBIGUOUS on a busy machine
    assert "host: " in done.stdout
    verdicts = verdicts_of(out)
    (case,) = verdicts["cases"]
    assert case["id"] == "test_generate[tiny.en-2-single-flash]"
    assert verdicts["verdict"] in ("PASS", "AMBIGUOUS", "IMPROVED")
    exact = {metric["metric"]: metric["verdict"] for metric in case["metrics"] if metric["metric"] != "time"}
    assert exact["aten_op_count"] == exact["peak_memory_allocated_bytes"] == "PASS"
    assert not (out / "trees").exists()
    for side in ("base.json", "head.json"):
        assert json.loads((out / side).read_text())["benchmarks"]
    assert "tiny.en-2-single-flash" in (out / REPORT).read_text()
    assert summary.read_text().strip() == (out / REPORT).read_text().strip()
    assert "<html" in (out / PAGE).read_text().lower()


@pytest.mark.slow
def test_the_counters_of_two_commits(checkout: Path, tmp_path: Path) -> None:
    out, summary = tmp_path / "out", tmp_path / "summary.md"
    done = run_step(checkout, summary, "counters", "--out", str(out), "--")
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = verdicts_of(out)
    assert {case["verdict"] for case in verdicts["cases"]} == {"PASS"}
    assert {metric["metric"] for case in verdicts["cases"] for metric in case["metrics"]} >= {"aten_op_count"}
    assert not (out / "trees").exists()
    commits = [json.loads((out / side).read_text())["commit_info"]["id"] for side in ("base.json", "head.json")]
    assert len({*commits}) == 2
    assert summary.read_text().strip() == (out / REPORT).read_text().strip()
