"""Whatever is typed: a command does it, or refuses it in one line with exit code 2; the suite's options likewise."""

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perf_tests import __main__ as front
from perf_tests.common.errors import BadInputError
from perf_tests.matrix.options import whole_number
from perf_tests.matrix.plan import Options, Probes, make_plan
from perf_tests.runs.saved import Run
from tests.ab.conftest import commit, git
from tests.make_runs import make_plain, make_run, save

ANY = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=int(os.environ.get("PERF_PROPERTY_EXAMPLES", "40")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FILES = ("run.json", "other.json", "plain.json", "cut.json", "empty.json", "folder", "runs", "missing/run.json", "new")
WORDS = (
    *FILES,
    *("latest", "latest~1", "latest~x", "main", "1a2b", "0001", "0", "1", "2", "-1", "1e400", "nan", "5%", "[1, 2]"),
    *(
        "",
        ".",
        "..",
        "/",
        "~",
        "*",
        "--",
        "-",
        "-k",
        "HEAD",
        "HEAD~1",
        "0" * 40,
        "a" * 300,
        "file://runs",
        "https://x/",
    ),
    *(
        "Läufe",
        "張…",
        "💥",
        "\udcff",
        "two\nlines",
        "\x1b[31m",
        "[red]",
        "{commit}",
        "time",
        "memory",
        "quick",
        "flash",
    ),
)
# What a shell can hand over: anything but NUL, undecodable bytes as Python has them.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
COMMANDS = [*front.COMMANDS]


@cache
def options_of(command: str) -> tuple[str, ...]:
    """The options that a command's help names; of `ci` those of its steps."""
    found: set[str] = set()
    for step in (("measure",), ("report",), ("counters",)) if command == "ci" else ((),):
        with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as ended:
            front.main([command, *step, "--help"])
        assert ended.value.code == 0
        found |= {*re.findall(r"--[a-z][a-z-]+", out.getvalue())}
    return tuple(sorted(found - {"--help"}))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout with runs in it, good and broken; no process measures, and nothing is read from the user's folders."""
    root = tmp_path_factory.mktemp("world")
    git(root, "init", "--quiet")
    for name in ("whisper_flash_attention", "perf_tests"):
        (root / name).mkdir()
        (root / name / "__init__.py").write_text("version = 1\n")
    commit(root, "first")
    (root / "whisper_flash_attention" / "__init__.py").write_text("version = 2\n")
    commit(root, "second")

    def measure(job: object) -> Run:
        raise BadInputError("pytest ended with 4")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PERF_STORE", str(root / "store"))
        patch.delenv("GITHUB_STEP_SUMMARY", raising=False)
        patch.setattr("perf_tests.ab.process.measure", measure)
        patch.setattr("perf_tests.ci.counters.measure", measure)
        patch.setattr("perf_tests.ci.command.check_machine", lambda device: None)
        patch.setattr("perf_tests.peers.command.run", lambda options, tell: 0)
        yield root


@pytest.fixture
def files(world: Path) -> Callable[[], None]:
    """Puts the files back that a command may have replaced."""
    run, other, plain = make_run(seed=1), make_run(seed=2), make_plain(make_run(seed=3))

    def restore() -> None:
        for name in (*FILES, "store", ".perf_runs"):
            path = world / name.partition("/")[0]
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        save(run, world / "run.json")
        save(run, world / "runs" / "Machine" / f"0001_{'1a2b':0<40}_20261124_100000.json")
        save(other, world / "runs" / "Machine" / f"0002_{'1a2c':0<40}_20261124_100000.json")
        save(other, world / "other.json")
        save(run, world / "store" / "baselines" / "main.json")
        save(plain, world / "plain.json")
        (world / "cut.json").write_text(json.dumps(run)[:-100])
        (world / "empty.json").write_bytes(b"")
        (world / "folder").mkdir()

    return restore


def run_command(arguments: list[str]) -> tuple[int, str, str]:
    """Run `python -m perf_tests` with these arguments in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        code = front.main(arguments)
    return code, out.getvalue(), error.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
@ANY
@given(data=st.data())
def test_a_command_does_it_or_refuses_it(command: str, files: Callable[[], None], data: st.DataObject) -> None:
    files()
    words = st.sampled_from((*options_of(command), *WORDS)) | st.sampled_from(FILES) | texts
    steps = st.sampled_from(["measure", "report", "counters", "other"]) if command == "ci" else st.none()
    step = data.draw(steps)
    out = ["--out", data.draw(st.sampled_from(["new", "folder", "run.json"]))] if data.draw(st.booleans()) else []
    arguments = [word for word in data.draw(st.lists(words, max_size=7)) if word not in ("-h", "--help")]
    code, printed, error = run_command([command, *filter(None, [step]), *(out if step else []), *arguments])
    assert code in (0, 1, 2)
    told = [line for line in error.splitlines() if re.match(r"perf_tests \w+( \w+)?: (?!left out: )", line)]
    assert len(told) == (code == 2), error
    assert "Traceback" not in error + printed
    if code == 2:
        assert told[0] == error.splitlines()[-1]
        assert told[0].isprintable()


@ANY
@given(arguments=st.lists(st.sampled_from([*COMMANDS, "-h", *WORDS]) | texts, max_size=1))
def test_the_front_knows_its_commands(arguments: list[str]) -> None:
    if not {*arguments} <= {*COMMANDS}:
        code, _, error = run_command(arguments)
        assert code == (0 if {*arguments} & {"-h", "--help"} else 2)
        assert error


texts_or_nothing = st.none() | st.sampled_from(["0", "1", "-1", "2.5", "inf", "nan", "", " ", "5%", "1e9"]) | texts
names = st.lists(
    st.sampled_from(["tiny.en", "4", "single", "flash", "original", "batched", "0", ""]) | texts, max_size=2
)


@ANY
@given(
    data=st.data(),
    gpus=st.sampled_from([0, 1, 2]),
    flags=st.lists(st.booleans(), min_size=4, max_size=4),
    weights=st.sampled_from(["random", "pretrained", "", "Random"]),
)
def test_a_plan_is_made_or_refused(data: st.DataObject, gpus: int, flags: list[bool], weights: str) -> None:
    def draw(*usual: str) -> str | None:
        return data.draw(st.sampled_from([None, *usual]) | texts_or_nothing)

    options = Options(
        preset=draw("quick", "paper", "full"),
        device=draw("cpu", "cuda", "cuda:1", "cuda:9", "cuda:-1"),
        dtype=draw("float32", "float16", "int8"),
        rounds=draw("single=10,batched=2", "single=1", "single="),
        precision=draw(),
        case_budget=draw(),
        control_after=flags[0],
        dataset=draw("synthetic", "owner/name", "/nowhere"),
        weights=weights,
        checkpoints=tuple(data.draw(names)),
        decoder_layers=tuple(data.draw(names)),
        settings=tuple(data.draw(names)),
        implementations=tuple(data.draw(names)),
        components=flags[1],
        accuracy=flags[2],
        profile=draw("traces"),
        counters_only=flags[3],
    )
    with contextlib.suppress(BadInputError):
        assert make_plan(options, Probes(lambda: gpus > 0, lambda: gpus, lambda dtype: True)).cases


@ANY
@given(text=texts_or_nothing.filter(lambda text: text is not None))
def test_a_number_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(BadInputError):
        assert whole_number(text, "--perf-timeout", "seconds") >= 1
