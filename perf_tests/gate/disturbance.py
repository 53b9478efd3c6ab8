"""What else went on while two runs were timed, and what follows of it for the verdict on time.

A pair of rounds is disturbed where others took cores that it needs, used its GPU, or the GPU's clocks were throttled.
Disturbed pairs are left out where enough remain. Where too few do, all count, and what may change grows by what such
a disturbance was seen to move unchanged code by: an effect beyond that is judged all the same, either way.
``tests/disturbances.py`` measures that on a CPU, and ``docs/gate.md`` has its table. What has not been measured gives
no verdict: a GPU's case that was disturbed all the time (the original waits for the CPU there, and flash for the GPU),
and a control that moved by more than was seen.
"""

from collections.abc import Iterator
from typing import NamedTuple

from perf_tests.common.text import count_of, percent
from perf_tests.runs.device_state import FOREIGN_SHARE
from perf_tests.runs.records import Record
from perf_tests.runs.statistics import BOOTSTRAP_PAIRS, Rounds, uncorrected_change

# What unchanged code changes by, 98 times of 100, where a disturbance was in all of its pairs: 3.4 % beside one busy
# core of two, 4.1 % beside a copy loop, 5.6 % beside two busy processes (docs/gate.md); other machines may need more.
DISTURBED_NOISE = 0.07
# A control that moved by more says that the machine was another one, though no disturbance was seen: a guest sees
# nothing of its neighbours.
CONTROL_SHIFT = 0.15
# Beside those it took up to 2.2 times as long; the noise beyond is not known.
MOST_SLOWED = 3.0


class Timed(NamedTuple):
    """The rounds of both runs that count.

    ``noise`` is what unchanged code changes by in them where they were disturbed, ``None`` where that is not known, and
    0 where they were not. ``remarks`` say what was disturbed, and what became of it.
    """

    base: Rounds
    head: Rounds
    noise: float | None
    remarks: tuple[str, ...]


def sift(base: Record, head: Record) -> Timed:
    """Leave out the disturbed pairs of two runs of a case, or say what they are good for."""
    remarks: list[str] = []
    rounds, disturbed = [], False
    for name, record in (("BASE", base), ("HEAD", head)):
        calm = calm_rounds(record)
        remarks += _remarks(name, record, calm)
        rounds.append(calm or record.rounds)
        disturbed |= calm is None
    shift = uncorrected_change(*(each.control_seconds for each in rounds))
    if moved := not -CONTROL_SHIFT <= shift <= CONTROL_SHIFT:
        remarks.append(f"the control itself moved by {percent(shift)}")
    noise: float | None = 0.0
    if disturbed or moved:
        measured = head.definition.get("device") == "cpu" and 1 / MOST_SLOWED <= 1 + shift <= MOST_SLOWED
        noise = DISTURBED_NOISE if measured else None
    return Timed(rounds[0], rounds[1], noise, (*remarks,))


def calm_rounds(record: Record) -> Rounds | None:
    """The pairs that nothing disturbed; ``None`` where too few are left for an interval.

    Of several processes, those of which half of the pairs are left.
    """
    if all(each.calm for each in record.meanwhile):
        return record.rounds
    calm = [each.calm for each in record.meanwhile]
    if not record.process_rounds:
        return record.rounds.only(calm) if sum(calm) >= BOOTSTRAP_PAIRS else None
    kept: list[bool] = []
    enough = 0
    for count in record.process_rounds:
        own = calm[len(kept) : len(kept) + count]
        usable = 2 * sum(own) >= count
        enough += usable
        kept += [each and usable for each in own]
    return record.rounds.only(kept) if enough >= 2 else None


def what_disturbed(record: Record) -> str:
    """``others took up to 95 % of its cores``; nothing where all was calm."""
    disturbed = [each for each in record.meanwhile if not each.calm]
    most = max((each.foreign_share for each in disturbed), default=0.0)
    parts = [f"others took up to {100 * most:.0f} % of its cores"] if most > FOREIGN_SHARE else []
    if any(each.gpu_shared for each in disturbed):
        parts.append("others used its GPU")
    if any(each.gpu_throttled for each in disturbed):
        parts.append("its GPU's clocks were throttled")
    return " and ".join(parts)


def _remarks(name: str, record: Record, calm: Rounds | None) -> Iterator[str]:
    what = what_disturbed(record)
    if what and calm is None:
        yield f"{name} was disturbed: {what}"
    elif what:
        left_out = len(record.seconds) - len(calm.seconds) if calm else 0
        yield f"{left_out} of {count_of(len(record.seconds), 'pair')} of {name} left out: {what}"
