"""The comment on a pull request: what `comment.yml` makes of a run's files, which a stranger may have written."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKFLOW = Path(__file__).parents[2] / ".github" / "workflows" / "comment.yml"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CASE = "test_generate[tiny.en-4-single-flash]"
HARNESS = """
const calls = [];
const input = JSON.parse(process.env.INPUT);
const record = (name) => async (what) => { calls.push([name, what]); return { data: input.pulls }; };
const github = {
  rest: {
    pulls: { list: record('list') },
    issues: { listComments: 'comments', createComment: record('create'), updateComment: record('update') },
  },
  paginate: async () => input.comments,
};
const context = { repo: { owner: 'somebody', repo: 'project' }, payload: { workflow_run: input.run } };
const core = { notice: () => {} };
const AsyncFunction = Object.getPrototypeOf(async () => {}).constructor;
new AsyncFunction('github', 'context', 'core', 'require', process.env.SCRIPT)(github, context, core, require)
  .then(() => console.log(JSON.stringify(calls)));
"""

Post = Callable[..., list[list[Any]]]


@pytest.fixture
def post(tmp_path: Path) -> Post:
    """Runs the workflow's script over the reports in `tmp_path`, and returns what it asked GitHub for."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node, which runs the workflow's script")
    (step,) = [step for step in yaml.safe_load(WORKFLOW.read_text())["jobs"]["comment"]["steps"] if "env" in step]

    def run(comments: list[dict[str, Any]] = [], head: str = COMMIT) -> list[list[Any]]:  # noqa: B006
        owner = {"owner": {"login": "stranger"}}
        event = {"id": 7, "head_sha": COMMIT, "head_branch": "change", "head_repository": owner}
        given = {"run": event, "pulls": [{"number": 5, "head": {"sha": head}}], "comments": comments}
        environment = {"INPUT": json.dumps(given), "SCRIPT": step["with"]["script"], "REPORTS": str(tmp_path)}
        command = [node, "-e", HARNESS]
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=60
        )
        return json.loads(done.stdout)

    return run


def write_report(folder: Path, report: object, gpu: str = "h100") -> None:
    (folder / f"perf-report-{gpu}").mkdir()
    text = report if isinstance(report, str) else json.dumps(report)
    (folder / f"perf-report-{gpu}" / "verdicts.json").write_text(text)


def test_verdicts_are_told_worst_first(post: Post, tmp_path: Path) -> None:
    cases = [
        {"id": "test_generate[a-1-single-original]", "verdict": "PASS", "reasons": ["nothing"]},
        {"id": "test_generate[b-1-single-flash]", "verdict": "AMBIGUOUS", "reasons": ["too wide"]},
        {"id": CASE, "verdict": "REGRESSED", "reasons": ["time +5.1 % by the control's measure", "aten_op_count"]},
    ]
    write_report(tmp_path, {"verdict": "REGRESSED", "cases": cases, "notes": ["no calibration"]})
    asked, (name, what) = post()
    assert asked[1]["head"] == "stranger:change"
    assert (name, what["issue_number"]) == ("create", 5)
    body = what["body"]
    assert "### h100: REGRESSED" in body
    assert "1 REGRESSED, 1 AMBIGUOUS, 1 PASS" in body
    assert body.index("**REGRESSED**") < body.index("**AMBIGUOUS**")
    assert "**PASS**" not in body
    assert "aten\\_op\\_count" in body
    assert "- no calibration" in body
    assert COMMIT in body
    assert "/somebody/project/actions/runs/7" in body


def test_a_reason_is_told_whole_and_a_longer_one_is_seen_to_be_cut(post: Post, tmp_path: Path) -> None:
    reason = "time +5.1 % [+3.8, +6.4] by the control's measure, allowed +2.1 % (noise 2.1 %): " + 100 * "why "
    cases = [{"id": CASE, "verdict": "REGRESSED", "reasons": [reason[:350], reason]}]
    write_report(tmp_path, {"verdict": "REGRESSED", "cases": cases})
    told = post()[-1][1]["body"].replace("\\", "")
    assert f" {reason[:350]}<br>{reason[:399]}… |" in told


def test_the_comment_is_updated_in_place(post: Post, tmp_path: Path) -> None:
    write_report(tmp_path, {"verdict": "PASS", "cases": []})
    marker = "<!-- perf_tests -->\nold"
    comments = [
        {"id": 1, "body": marker, "user": {"login": "stranger"}},
        {"id": 2, "body": "something else", "user": {"login": "github-actions[bot]"}},
        {"id": 3, "body": marker, "user": {"login": "github-actions[bot]"}},
    ]
    _, (name, what) = post(comments)
    assert (name, what["comment_id"]) == ("update", 3)


def test_a_commit_that_is_no_longer_the_head_gets_no_comment(post: Post, tmp_path: Path) -> None:
    write_report(tmp_path, {"verdict": "PASS", "cases": []})
    assert [name for name, _ in post(head="f" * 40)] == ["list"]


def test_that_nothing_was_compared_is_told(post: Post, tmp_path: Path) -> None:
    write_report(tmp_path, {"verdict": "UNCHANGED", "cases": [], "notes": ["BASE and HEAD are the same package"]})
    body = post()[-1][1]["body"]
    assert "### h100: UNCHANGED\n\nno cases\n\n- BASE and HEAD are the same package" in body


def test_a_run_without_a_report_says_so(post: Post) -> None:
    assert "no result" in post()[-1][1]["body"]


@pytest.mark.parametrize("text", ["", "{", "null", "3", "[]", '{"verdict": {}, "cases": 3, "notes": "x"}', "\0"])
def test_a_broken_report_is_no_pass(text: str, post: Post, tmp_path: Path) -> None:
    write_report(tmp_path, text)
    body = post()[-1][1]["body"]
    assert "### h100: could not judge" in body
    assert "PASS" not in body


HOSTILE = (
    "@maintainers see #1 and https://evil.example www.evil.example [click](javascript:alert(1)) <img src=x onerror=y>"
    " | **bold** `code`\n\n## Heading\n<!-- perf_tests -->\u202e\x1b[31m"
)


def test_hostile_text_stays_text(post: Post, tmp_path: Path) -> None:
    cases = [{"id": CASE, "verdict": "FAILED", "reasons": [HOSTILE] * 9}, {"id": HOSTILE, "verdict": "FAILED"}]
    cases += [None, 3, {"id": CASE, "verdict": "<b>"}, {"id": "../../x y", "verdict": "PASS"}]
    write_report(tmp_path, {"verdict": HOSTILE, "cases": cases, "notes": [HOSTILE]})
    body = post()[-1][1]["body"]
    told = body.replace("<!-- -->", "").removeprefix("<!-- perf_tests -->\n").replace("<br>", "")
    for markup in ("<", ">", "\x1b", "\u202e", "\n## Heading"):
        assert markup not in told
    assert not re.search(r"(?<!\\)[`\[]", told)
    assert not re.search(r"@(?!<!--)\w|#(?!<!--)\d|www\.|://(?!github\.com/somebody)", body)
    assert "5 entries were not understood" in body
    assert body.count("**FAILED**") == 1


def test_links_and_large_files_are_not_read(post: Post, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"verdict": "PASS", "cases": []}')
    folder = tmp_path / "perf-report-linked"
    folder.mkdir()
    (folder / "verdicts.json").symlink_to(secret)
    write_report(tmp_path, '{"verdict": "PASS", "cases": [], "notes": ["' + 5_000_000 * "x" + '"]}', "large")
    write_report(tmp_path, {"verdict": "PASS", "cases": []}, "odd name; rm")
    body = post()[-1][1]["body"]
    assert body.count("could not judge") == 2
    assert "PASS" not in body
    assert "odd name" not in body


def test_a_long_report_is_cut_to_what_github_takes(post: Post, tmp_path: Path) -> None:
    cases = [{"id": f"case{n}", "verdict": "FAILED", "reasons": ["<" * 300] * 9} for n in range(500)]
    for gpu in range(20):
        write_report(tmp_path, {"verdict": "FAILED", "cases": cases}, f"gpu{gpu}")
    assert len(post()[-1][1]["body"]) < 65_536
