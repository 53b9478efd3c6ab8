"""``python -m perf_tests peers``: this model against the original, and both against the peers, on this CPU."""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from perf_tests.common.cli import make_parser, run_command, tell
from perf_tests.common.errors import BadInputError
from perf_tests.matrix.cases import CHECKPOINTS, Cell
from perf_tests.matrix.plan import SYNTHETIC, WEIGHTS, check_dataset
from perf_tests.subjects.audio import Speech, load_speech

if TYPE_CHECKING:
    from .contest import Entry
    from .rows import Result

SCHEMA_VERSION = 1
PARTS = ("rows", "contest")
NEW_TOKENS = 25
CONTEST_ROUNDS = 20
# As many clips as the largest batch of the rows; speech is checked on fewer.
CLIPS = 16
CHECKED_CLIPS = 4
LEAST_WIDTH = 160


def main(arguments: list[str]) -> int:
    """Run the command.

    Returns:
        0; 1 where a row could not be measured, or float32 tokens are not the original's; 2 for bad input.
    """
    return run_command("peers", lambda: run(parse(arguments), partial(tell, "peers")))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse and check the options.

    Raises:
        BadInputError: with one line for the user.
    """
    parser = make_parser("peers", str(__doc__))
    parser.add_argument(
        "--checkpoint", action="append", metavar="NAME", help="of the contest, repeatable; the default is tiny.en"
    )
    parser.add_argument("--weights", choices=WEIGHTS, default="random", help="pretrained ones come from the Hub")
    parser.add_argument("--dataset", metavar="DIR", default=SYNTHETIC, help="speech; the default is made here")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each row and of the contest")
    parser.add_argument("--only", choices=PARTS, help="run one part")
    parser.add_argument("--json", type=Path, metavar="F", help="save all of it")
    options = parser.parse_args(arguments)
    options.checkpoint = list(dict.fromkeys(options.checkpoint or ["tiny.en"]))
    for name in options.checkpoint:
        if name not in CHECKPOINTS:
            raise BadInputError(f"--checkpoint: {name!r} is unknown; choose from {', '.join(CHECKPOINTS)}")
    if options.rounds is not None and options.rounds < 1:
        raise BadInputError(f"--rounds: {options.rounds} is too few; give at least 1 round")
    if options.json is not None:
        _check_writable(options.json)
    try:
        check_dataset(options.dataset)
    except BadInputError as error:
        raise _as_typed(error) from None
    return options


def run(options: argparse.Namespace, tell: Callable[[str], None]) -> int:
    """Measure, print and save.

    Raises:
        BadInputError: the speech or the pretrained weights cannot be had.
    """
    import torch

    from perf_tests.machine.describe import describe_machine

    from .engines import quieten_transformers

    quieten_transformers()
    try:
        speech = load_speech(options.dataset, CLIPS)
    except BadInputError as error:
        raise _as_typed(error) from None
    # Only real weights make text of speech.
    decoders = {name: make_decoder(name) if options.weights == "pretrained" else None for name in options.checkpoint}
    results = measure_rows(options, speech, tell) if options.only != "contest" else []
    entries: list[Entry] = []
    for checkpoint in options.checkpoint if options.only != "rows" else ():
        with tempfile.TemporaryDirectory() as folder:
            entries += contend(checkpoint, options, speech, Path(folder), decoders[checkpoint], tell)
    record = {
        "schema_version": SCHEMA_VERSION,
        "weights": options.weights,
        "audio": speech.name,
        "machine": describe_machine("cpu"),
        "rows": [result.record() for result in results],
        "peers": [entry.record() for entry in entries],
    }
    if options.json is not None:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    show(results, entries, options.weights, f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    return judge(results, entries)


def measure_rows(options: argparse.Namespace, speech: Speech, tell: Callable[[str], None]) -> "list[Result]":
    """All rows, one after another."""
    from .rows import ROWS, Workshop, measure_row

    workshop = Workshop(options.weights, speech)
    results = []
    for number, row in enumerate(ROWS, 1):
        tell(f"[{number}/{len(ROWS)}] {row.name}, {row.dtype}")
        results.append(measure_row(row, workshop, options.rounds))
    return results


def contend(
    checkpoint: str,
    options: argparse.Namespace,
    speech: Speech,
    folder: Path,
    decode: Callable[[list[int]], str] | None,
    tell: Callable[[str], None],
) -> "list[Entry]":
    """The contest of one checkpoint, of all its layers.

    Raises:
        BadInputError: the original cannot run.
    """
    import numpy as np
    import torch

    from perf_tests.subjects.subject import make_features

    from .contest import hold_contest
    from .engines import Job, PeerError

    cell = Cell(checkpoint, CHECKPOINTS[checkpoint].decoder_layers, "batched")
    job = Job(cell, options.weights, NEW_TOKENS, torch.get_num_threads(), folder)
    clips = min(CHECKED_CLIPS, len(speech.clips))
    np.save(job.features, make_features(cell, speech)[:clips].numpy())
    rounds = options.rounds or CONTEST_ROUNDS
    try:
        return hold_contest(job, rounds, decode, clips, lambda line: tell(f"{checkpoint}: {line}"))
    except PeerError as error:
        raise BadInputError(str(error)) from None


def make_decoder(checkpoint: str) -> Callable[[list[int]], str]:
    """What makes text of a pretrained checkpoint's tokens.

    Raises:
        BadInputError: the checkpoint or its tokenizer cannot be had.
    """
    import torch
    from transformers import WhisperTokenizer

    from perf_tests.subjects.weights import Weights

    dims = CHECKPOINTS[checkpoint]
    try:
        # Loaded once to see that it is there, before minutes are spent on the rows.
        Weights(Cell(checkpoint, dims.decoder_layers, "single"), "pretrained").build(
            "original", torch.device("cpu"), torch.float32
        )
        tokenizer = WhisperTokenizer.from_pretrained(dims.hub_id)
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInputError(f"--weights pretrained: {str(error).strip().splitlines()[0]}") from None

    def decode(tokens: list[int]) -> str:
        text: Any = tokenizer.decode(tokens, skip_special_tokens=True)
        return str(text).strip()

    return decode


def show(
    results: "Sequence[Result]",
    entries: "Sequence[Entry]",
    weights: str,
    versions: str,
) -> None:
    from perf_tests.machine.describe import describe_cpu

    from .tables import print_contest, print_rows, print_transcripts

    console = Console()
    console.width = max(LEAST_WIDTH, console.width)
    console.print(f"{describe_cpu()}, {versions}", highlight=False)
    if results:
        print_rows(results, console)
    print_contest(entries, weights, console)
    print_transcripts(entries, console)


def judge(results: "Sequence[Result]", entries: "Sequence[Entry]") -> int:
    """The exit code: 1 where a row is unmeasured, or flash's float32 tokens are not the original's."""
    missed = any(result.ratio is None for result in results)
    unlike = any(result.row.dtype == "float32" and result.first_difference is not None for result in results)
    ours = [entry for entry in entries if entry.engine.name == "flash" and entry.control == "float32"]
    return int(missed or unlike or any(entry.ratio is None or entry.first_difference is not None for entry in ours))


def _check_writable(path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise BadInputError(f"--json {path}: {'a folder' if path.is_dir() else 'there is no such folder'}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadInputError(f"--json {path}: not writable")


def _as_typed(error: BadInputError) -> BadInputError:
    """The suite's message, with this command's name of the option."""
    return BadInputError(str(error).replace("--perf-dataset", "--dataset"))
