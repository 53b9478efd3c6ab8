"""Measure the original Whisper and flash attention's, and print the two tables of 2023.

A front to the suite in perf_tests: it runs the suite's cases through pytest, which shows the progress, prints the
tables, and writes three things to --output: run.json (all that was recorded, in pytest-benchmark's form; what
`python -m perf_tests report` and `compare` read), tables.md, and <setting>-<implementation>.csv with the columns of
2023: checkpoint, decoder layers, parameters, compression, VRAM, runtime. Without a GPU, VRAM is the allocator's peak in
main memory. Runtime is the median round times the setting's number of batches (single: 100, batched: 10).

Without options it measures on a GPU all 26 cells of both tables, and on a CPU the few that it can do in minutes.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from perf_tests.common.cli import Parser
from perf_tests.common.console import show_everywhere
from perf_tests.common.errors import BadInputError
from perf_tests.matrix import cases
from perf_tests.matrix.plan import nvidia_driver_present

ROOT = Path(__file__).resolve().parent
CANNOT = 2


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark.

    Returns:
        pytest's exit code (0 where every case passed); 2 where it could not begin or nothing was measured.
    """
    show_everywhere()
    try:
        options = parse(arguments)
        return benchmark(options)
    except BadInputError as error:
        print(f"benchmark_flash_attention.py: {error}", file=sys.stderr)
        return CANNOT


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options; what stands after ``--`` is pytest's."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    add = parser.add_argument
    add("--setting", action="append", default=[], choices=[*cases.SETTINGS], help="only this one; repeatable")
    add("--checkpoint", action="append", default=[], choices=[*cases.CHECKPOINTS], help="only this one; repeatable")
    add("--decoder-layers", action="append", default=[], type=int, metavar="N", help="only this depth; repeatable")
    add(
        "--implementation",
        action="append",
        default=[],
        choices=cases.IMPLEMENTATIONS,
        help="only this one; repeatable (default: original and flash)",
    )
    add(
        "--preset", choices=[*cases.PRESETS], help="cells to choose from (default: the smallest that has what is asked)"
    )
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: the GPU, if there is one)")
    add("--rounds", type=int, metavar="N", help="rounds of each case (default: the preset's)")
    add("--output", type=Path, default=Path("benchmark_results"), metavar="DIR", help="default: %(default)s")
    add("pytest", nargs="*", metavar="-- ARGUMENT", help="more arguments for pytest")
    return parser.parse_args(arguments)


def benchmark(options: argparse.Namespace) -> int:
    """Run the suite in a process of its own, then print and write what it measured."""
    saved = options.output / "run.json"
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        saved.unlink(missing_ok=True)
    except OSError as error:
        raise BadInputError(f"--output {options.output}: {error.strerror}") from None
    code = subprocess.run(suite_command(options, saved.resolve()), cwd=ROOT, check=False).returncode
    if not saved.is_file() or not saved.stat().st_size:
        raise BadInputError(f"nothing was measured; pytest ended with {code}, and says why above")

    from perf_tests.common.files import write_file
    from perf_tests.report.gathering import Found, gather
    from perf_tests.report.markdown import to_markdown
    from perf_tests.report.rows import rows_of
    from perf_tests.report.spreadsheet import write_spreadsheets

    machines = gather([Found(saved, saved.name)]).machines
    tables = to_markdown(machines)
    tables_path = options.output / "tables.md"
    write_file(tables_path, tables.encode())
    paths = write_spreadsheets(rows_of(machines[0].shown), options.output)
    print(f"\n{tables}\nwritten: {', '.join(map(str, (saved, tables_path, *paths)))}")
    return code


def suite_command(options: argparse.Namespace, saved: Path) -> list[str]:
    """The suite as a user would run it.

    Raises:
        BadInputError: no preset has the cells that were asked for.
    """
    implementations = options.implementation or ["original", "flash"]
    command = [sys.executable, "-m", "pytest", "perf_tests", f"--benchmark-json={saved}"]
    command.append(f"--perf-preset={options.preset or choose_preset(options)}")
    for name, values in (
        ("setting", options.setting),
        ("checkpoint", options.checkpoint),
        ("decoder-layers", options.decoder_layers),
        ("implementation", implementations),
        ("device", [options.device] if options.device else []),
        ("rounds", [] if options.rounds is None else [options.rounds]),
    ):
        command += [f"--perf-{name}={value}" for value in values]
    return [*command, *options.pytest]


def choose_preset(options: argparse.Namespace) -> str:
    """The smallest preset that has the cells asked for; a GPU does not stop at the few of a CPU."""
    on_gpu = not str(options.device or "").startswith("cpu") and nvidia_driver_present()
    selection = cases.Selection(
        checkpoints=tuple(options.checkpoint),
        decoder_layers=tuple(options.decoder_layers),
        settings=tuple(options.setting),
    )
    presets = [name for name in cases.PRESETS if not (on_gpu and name == "quick")]
    for preset in presets:
        try:
            cases.select(preset, selection)
        except cases.SelectionError as error:
            problem = error
        else:
            return preset
    raise BadInputError(str(problem))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
