"""Saved runs as other tools, shells and clocks leave them, in folders of any name."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from perf_tests.common.files import write_file
from perf_tests.report.gathering import find, gather
from perf_tests.runs.journal import Context, Journal
from perf_tests.runs.journals import read_journals
from perf_tests.runs.references import locate, saved_runs
from tests.gate.conftest import Outcome, refused
from tests.make_runs import make_run, save

RunCompare = Callable[..., Outcome]


def encoded(encoding: str, mark: bytes = b"") -> bytes:
    return mark + json.dumps(make_run(seed=2), ensure_ascii=False).encode(encoding)


# Encodings


@pytest.mark.parametrize(
    "content",
    [
        encoded("utf-8", b"\xef\xbb\xbf"),
        encoded("utf-16"),  # with its mark: what PowerShell's `>` writes
        encoded("utf-16-le"),
        encoded("utf-16-be", b"\xfe\xff"),
        encoded("utf-32"),
    ],
    ids=["utf-8 with a mark", "utf-16", "utf-16-le", "utf-16-be", "utf-32"],
)
def test_any_encoding_of_unicode_is_read(content: bytes, run_compare: RunCompare, tmp_path: Path) -> None:
    path = tmp_path / "head.json"
    path.write_bytes(content)
    assert run_compare(save(make_run(seed=1), tmp_path / "base.json"), path).code == 0
    assert len(gather(find([str(path)], tmp_path)).paths) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\xff\xfe", "JSON that is cut short"),
        (encoded("utf-8")[:5000], "JSON that is cut short"),
        (encoded("utf-16")[:5000], "JSON that is cut short"),
        (encoded("utf-16")[:5001], "not JSON"),
        (encoded("utf-8", b"\xff\xfe"), "not JSON"),
        ("Größe: 5".encode("latin-1"), "not JSON"),
        (b'{"results": [], "machine": "asv"}', "JSON of another kind"),
        (b"[1, 2]", "JSON of another kind"),
        (b"\x1f\x8b\x08\x00gzip", "not JSON"),
    ],
)
def test_what_is_no_run_is_refused_in_a_line(
    content: bytes, words: str, run_compare: RunCompare, tmp_path: Path
) -> None:
    path = tmp_path / "head.json"
    path.write_bytes(content)
    refused(run_compare(save(make_run(seed=1), tmp_path / "base.json"), path), f"{path}: {words}")


# Folders


@pytest.mark.parametrize("name", ["my runs", "Läufe/張…", "100%20", "a'b\"c", "-dash"])
def test_a_storage_folder_may_have_any_name(name: str, run_compare: RunCompare, tmp_path: Path) -> None:
    """Relative, or as pytest-benchmark has it with `file://`."""
    for number in (1, 2):
        save(make_run(seed=number), Path(name) / "Machine" / f"000{number}_{40 * 'a'}_20261124_100000.json")
    for storage in (name, f"file://{Path(name).resolve()}"):
        assert run_compare("latest~1", "latest", f"--storage={storage}").code == 0
    assert len(gather(find([name], Path())).paths) == 2


def test_a_file_is_whole_though_the_temporary_folder_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is renamed from one file system to another: a draft lies beside what it becomes."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no other file system here")
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    monkeypatch.setattr("tempfile.tempdir", None)
    write_file(tmp_path / "new" / "run.json", b"{}")
    assert (tmp_path / "new" / "run.json").read_bytes() == b"{}"


# Clocks

# By these clocks the second was saved first, and by their texts the third.
CLOCKS = ("2026-03-01T10:00:00+00:00", "2026-03-01T11:30:00+02:00", "2026-03-01T05:45:00-04:30")


def test_history_goes_by_instants_whatever_the_files_are_called(tmp_path: Path) -> None:
    for name, when in zip(("0003_a.json", "0001_b.json", "0002_c.json"), CLOCKS, strict=True):
        save(make_run(seed=1) | {"datetime": when}, tmp_path / name)
    (machine,) = gather(find([str(tmp_path)], tmp_path)).machines
    assert [run.path.name for run in machine.runs] == ["0001_b.json", "0003_a.json", "0002_c.json"]
    assert [run.datetime[:16] for run in machine.runs] == ["2026-03-01T09:30", "2026-03-01T10:00", "2026-03-01T10:15"]
    assert machine.shown.path.name == "0002_c.json"


def test_the_latest_run_is_the_one_saved_last_though_the_clock_was_set_back(tmp_path: Path) -> None:
    """pytest-benchmark numbers the runs of a folder as it saves them, which no clock changes."""
    for number, when in enumerate(CLOCKS, 1):
        save(make_run(seed=1) | {"datetime": when}, tmp_path / f"{number:04}_run.json")
    assert locate("latest", tmp_path).path.name == "0003_run.json"


def test_numbers_of_several_machines_say_nothing_of_each_other(tmp_path: Path) -> None:
    early, late = (datetime.fromisoformat(CLOCKS[0]) + timedelta(hours=hours) for hours in (0, 1))
    for folder, number, when in (("A", 7, early), ("B", 1, late), ("A", 9, early)):
        save(make_run(seed=1) | {"datetime": when.isoformat()}, tmp_path / folder / f"{number:04}_run.json")
    assert [(run.path.parent.name, run.number) for run in saved_runs(tmp_path)] == [("A", 7), ("A", 9), ("B", 1)]


def test_the_journal_that_was_written_last_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, started in (("journal_20270101_000000_1.jsonl", 1000.0), ("journal_20260101_000000_2.jsonl", 2000.0)):
        monkeypatch.setattr("perf_tests.runs.journal.time.time", lambda started=started: started)
        Journal(tmp_path / name, ["a"], {}, Context()).file.close()
    assert [past.sessions[0].started for past in read_journals(tmp_path)] == [2000.0, 1000.0]
