"""The session of ``ab``: which process measures what next, what is done already, and when it is enough.

Processes come in blocks of two, one per side, next to each other in time: A B, B A, A B, … In every other block the
control runs after each round instead of before it. A block's two processes are alike in all but the package, so their
difference is free of what the order does. Every finished process is on disk: a session that was cut short goes on.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from perf_tests.common.errors import BadInputError
from perf_tests.common.files import write_file
from perf_tests.common.text import clean
from perf_tests.gate.comparison import Comparison
from perf_tests.gate.thresholds import TIME
from perf_tests.gate.verdicts import Finding, Verdict
from perf_tests.runs.saved import Run, parse_run

from .pooling import pool_runs
from .process import SUITE, Job, measure_once
from .trees import Side

# With fewer there is no interval.
LEAST_BLOCKS = 2
# Processes have a fast and a slow state more than they have a mean. With two or three on each side, those of one side
# are now and then all in one state, and the interval that follows from them is far too narrow.
BLOCKS_OF_A_CHANGE = 4
MANIFEST = "session.json"


class Block(NamedTuple):
    """Two processes next to each other: the sides in their order, and where both run the control."""

    number: int
    base_first: bool
    control_after: bool

    def order(self, sides: Sequence[Side]) -> Sequence[Side]:
        """The sides, the first one first."""
        return sides if self.base_first else sides[::-1]


def block_of(number: int) -> Block:
    """The block ``number``, from 1."""
    return Block(number, base_first=number % 2 == 1, control_after=number % 2 == 0)


class Limits(NamedTuple):
    """How long a session goes on: so many blocks, or with a budget until every verdict is settled."""

    blocks: int
    budget_seconds: float | None


class Pooled(NamedTuple):
    """Both sides' runs so far, as documents and as runs."""

    base: Mapping[str, Any]
    head: Mapping[str, Any]

    def runs(self) -> tuple[Run, Run]:
        return parse_run(self.base, "base"), parse_run(self.head, "head")


class Session:
    """The session called ``name`` in ``folder``; ``tell`` is told what happens, a line at a time."""

    def __init__(
        self, name: str, folder: Path, sides: tuple[Side, Side], arguments: Sequence[str], tell: Callable[[str], None]
    ) -> None:
        self.name = name
        self.folder = folder
        self.sides = sides
        self.arguments = arguments
        self.tell = tell
        self.blocks: list[tuple[Run, Run]] = []
        self.seconds: dict[str, float] = {}

    def resume(self) -> int:
        """Read what a session that was cut short left here, and drop what a finished one did; return how many runs are.

        Raises:
            BadInputError: the folder is another session's.
        """
        try:
            manifest = json.loads((self.folder / MANIFEST).read_bytes())
            name, finished, seconds = manifest["session"], manifest["finished"], dict(manifest["seconds"])
        except (OSError, ValueError, LookupError, TypeError):
            self.forget()
            return 0
        if name != self.name:
            raise BadInputError(f"{clean(self.folder)}: holds another session; give another --keep")
        if finished:
            self.forget()
        else:
            self.seconds = seconds
        return len(self.seconds)

    def forget(self) -> None:
        """Drop what was measured here."""
        for path in self.folder.glob("*-control-*.json"):
            path.unlink()

    def note(self, *, finished: bool = False) -> None:
        """Write down what is done."""
        manifest = {"session": self.name, "finished": finished, "seconds": self.seconds}
        write_file(self.folder / MANIFEST, (json.dumps(manifest, indent=4) + "\n").encode())

    @property
    def spent(self) -> float:
        """Seconds that processes took, earlier sessions' included."""
        return sum(self.seconds.values())

    def measure_block(self, targets: Sequence[str]) -> None:
        """Measure the next block, or what is left of it."""
        block = block_of(len(self.blocks) + 1)
        runs = {side.name: self._measure(side, block, targets) for side in block.order(self.sides)}
        self.blocks.append((runs["base"], runs["head"]))

    def pool(self) -> Pooled:
        """All blocks so far as one run of each side."""
        runs = zip(*self.blocks, strict=True)
        base, head = (pool_runs(own, describe_commit(side)) for own, side in zip(runs, self.sides, strict=True))
        return Pooled(base, head)

    def save(self) -> Pooled:
        pooled = self.pool()
        for side, document in zip(self.sides, pooled, strict=True):
            write_file(self.folder / f"{side.name}.json", (json.dumps(document, indent=4) + "\n").encode())
        return pooled

    def _measure(self, side: Side, block: Block, targets: Sequence[str]) -> Run:
        position = "after" if block.control_after else "before"
        name = f"{block.number:03}-{side.name}-control-{position}"
        job = Job(side.tree, self.folder / f"{name}.json", targets, self.arguments, block.control_after)
        start = time.monotonic()
        what = f"block {block.number}: {side.name} ({side.revision}), control {position}"
        run = measure_once(job, partial(self.tell, what))
        self.seconds.setdefault(name, time.monotonic() - start)
        self.note()
        check_package(run, side)
        return run


def run_session(session: Session, limits: Limits, compare: Callable[[Pooled], Comparison]) -> Comparison:
    """Measure block after block until ``limits`` are reached; return the comparison over all of them."""
    targets: Sequence[str] = (SUITE,)
    while True:
        before = session.spent
        session.measure_block(targets)
        block_seconds = session.spent - before
        pooled = session.save()
        if len(session.blocks) < (LEAST_BLOCKS if limits.budget_seconds else limits.blocks):
            continue
        comparison = compare(pooled)
        targets = _open_targets(session, comparison) if limits.budget_seconds else ()
        if not targets or session.spent + block_seconds > (limits.budget_seconds or 0):
            session.note(finished=True)
            return comparison
        session.tell(f"{len(targets)} of {len(comparison.cases)} cases not settled after {len(session.blocks)} blocks")


def is_settled(verdict: Verdict, time_finding: Finding | None, blocks: int) -> bool:
    """Whether more blocks than these could hardly change a verdict.

    They cannot where nothing was timed, or where something exact has failed. Else the interval must lie on one side of
    what is allowed: to stop at the first verdict would be to stop at the first accident. A change takes more blocks.
    """
    if verdict in (Verdict.MISSING, Verdict.FAILED, Verdict.NEW) or time_finding is None:
        return True
    low, high, allowed = time_finding.low, time_finding.high, time_finding.allowed
    if low is None or high is None or allowed is None or time_finding.verdict is Verdict.AMBIGUOUS:
        return False
    if time_finding.verdict is not Verdict.PASS and blocks < BLOCKS_OF_A_CHANGE:
        return False
    return bool(high <= allowed or low > allowed)


def describe_commit(side: Side) -> dict[str, Any]:
    """What a run's ``commit_info`` says: a side's tree is no checkout, so git cannot say it."""
    return {"id": side.revision.commit or "unknown", "dirty": side.revision.dirty, "asked": side.revision.asked}


def check_package(run: Run, side: Side) -> None:
    """Refuse a run of another package than its side's.

    Raises:
        BadInputError: the process imported something else.
    """
    path, code = run.machine_info.get("package_path"), run.machine_info.get("package_hash")
    if code != side.package_hash or not Path(str(path)).resolve().is_relative_to(side.tree.resolve()):
        raise BadInputError(
            f"the process for {side.name} imported {clean(path)} ({clean(code)}), not {clean(side.tree)}"
            f" ({side.package_hash}): something on sys.path comes before it"
        )


def _open_targets(session: Session, comparison: Comparison) -> list[str]:
    """Pytest's node ids of the cases that are not settled."""
    node_ids = {bench["name"]: bench["fullname"] for bench in session.blocks[0][1].document["benchmarks"]}
    done = len(session.blocks)
    unsettled = [case.id for case in comparison.cases if not is_settled(case.verdict, case.finding(TIME), done)]
    return [node_ids[name] for name in unsettled if name in node_ids]
