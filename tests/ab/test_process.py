"""One process that measures: its command, its run, and what happens when it ends badly."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from perf_tests.ab.process import Job, measure
from perf_tests.common.errors import BadInputError
from tests.make_runs import make_run


class Scripted(Job):
    """A job whose process is a script that is told where the run's file goes."""

    def command(self, out: Path) -> list[str]:
        return [sys.executable, *self.arguments, str(out)]


@pytest.fixture
def make_job(tmp_path: Path) -> Any:
    def make(script: str) -> Job:
        path = tmp_path / "script.py"
        path.write_text(f"import sys\nfrom pathlib import Path\nout = Path(sys.argv[1])\n{script}\n")
        return Scripted(tmp_path, tmp_path / "runs" / "1.json", arguments=[str(path)])

    return make


def test_the_command_runs_the_trees_suite(tmp_path: Path) -> None:
    job = Job(tmp_path, tmp_path / "1.json", arguments=("-k", "tiny"), control_after=True)
    command = job.command(tmp_path / "1.partial")
    assert command[:4] == [sys.executable, "-m", "pytest", "perf_tests"]
    assert command[-4:] == [f"--benchmark-json={tmp_path / '1.partial'}", "--perf-control-after", "-k", "tiny"]


def test_a_run_is_read_and_its_output_kept(make_job: Any) -> None:
    document = json.dumps(make_run())
    job = make_job(f"print('measuring'); out.write_text({document!r}); sys.exit(1)")
    assert len(measure(job).records) == 2
    assert job.log.read_text() == "measuring\n"
    assert [path.name for path in job.out.parent.glob("*.partial")] == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("print('ERROR: no such option'); sys.exit(4)", "ended with 4: ERROR: no such option"),
        (
            "out.write_text('{'); import os; os.kill(os.getpid(), 9)",
            "was killed by signal 9; where memory runs out, the system kills it: nothing was printed",
        ),
        ("sys.exit(0)", "ended with 0"),
        ("out.write_text(''); sys.exit(1)", "ended with 1"),
    ],
)
def test_a_process_without_a_run_is_refused(make_job: Any, script: str, words: str) -> None:
    job = make_job(script)
    with pytest.raises(BadInputError, match=words):
        measure(job)
    assert not job.out.exists()
    assert not list(job.out.parent.glob("*.partial"))


def test_the_tree_comes_first_on_the_path(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    document = json.dumps(make_run())
    job = make_job(f"import os; print(os.environ['PYTHONPATH']); out.write_text({document!r})")
    measure(job)
    assert job.log.read_text().strip() == f"{job.tree}:/elsewhere"
