"""Reading the key ``device_state``: whether a case was disturbed, and least, median and most of what was recorded.

Imports no torch, and passes over what is no number: a report shows whatever there is.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from .schema import HARMFUL_THROTTLE_REASONS

# Of the cores that a run needs, how much others may keep busy before its rounds count as disturbed: 0.2 of two cores.
FOREIGN_SHARE = 0.1
_LARGEST = 2**63


class Cores(NamedTuple):
    """How many of the cores that a run may use it needs, and how many it leaves to others."""

    needed: int
    spare: float

    @classmethod
    def of(cls, machine_info: Mapping[str, Any], device: str) -> "Cores":
        """Of a run on ``device``: torch's threads, or on a GPU the one that launches its kernels.

        Where a run says nothing of its machine, all of its cores are needed; where it does not say how many of them it
        may use, it may use them all.
        """
        threads, cpu = machine_info.get("thread_count"), machine_info.get("cpu")
        needed = 1 if device.startswith("cuda") else threads
        needed = needed if isinstance(needed, int) and needed > 0 else 1
        count = machine_info.get("available_cores", cpu.get("count") if isinstance(cpu, Mapping) else None)
        return cls(needed, max(0, count - needed) if isinstance(count, int | float) else 0)

    def foreign_share(self, foreign_cores: float) -> float:
        """Of the needed cores, how much others took: what they keep busy beyond the spare ones."""
        return max(0.0, foreign_cores - self.spare) / self.needed


class Quantity(NamedTuple):
    """A list of ``device_state``: its place, the heading over it, and how a value, divided by ``unit``, is shown."""

    part: str
    key: str
    heading: str
    unit: float
    form: str


LOAD = Quantity("rounds", "foreign_cpu_cores", "others' load, cores", 1, ".2f")
SM_CLOCK = Quantity("gpu", "sm_clock_hz", "SM clock, MHz", 1e6, ".0f")
TEMPERATURE = Quantity("gpu", "temperature_celsius", "GPU, °C", 1, ".0f")
PROCESSES = Quantity("gpu", "foreign_processes", "others on the GPU", 1, ".0f")
THROTTLING = Quantity("gpu", "throttle_reasons", "throttled", 1, "")
HEADINGS = tuple(quantity.heading for quantity in (LOAD, SM_CLOCK, TEMPERATURE, PROCESSES, THROTTLING))


class Summary(NamedTuple):
    """What is shown of a quantity, and the number that it sorts by: the most, in the unit of the heading."""

    text: str
    most: float


def was_shared(state: Mapping[str, Any], cores: Cores) -> bool:
    """Whether others used what a case was timed on."""
    share = cores.foreign_share(state["foreign_cpu_cores"])
    return share > FOREIGN_SHARE or any(_values(state, PROCESSES))


def was_throttled(state: Mapping[str, Any]) -> bool:
    """Whether the GPU's clocks were below what was asked for at any time, for a reason that means trouble."""
    return _throttled_samples(state) > 0


def describe_state(state: object) -> dict[str, Summary]:
    """By heading: ``0.00 / 0.01 / 0.35``, the least, median and most of what was recorded.

    Of throttling and of other processes on the GPU there is nothing where there was none.
    """
    seldom = (PROCESSES,) if any(_values(state, PROCESSES)) else ()
    found = {quantity: _values(state, quantity) for quantity in (LOAD, SM_CLOCK, TEMPERATURE, *seldom)}
    shown = {quantity.heading: _summarize(values, quantity) for quantity, values in found.items() if values}
    if throttled := _throttled_samples(state):
        shown[THROTTLING.heading] = Summary(f"{throttled} of {len(_values(state, THROTTLING))} samples", throttled)
    return shown


def is_calm(described: Mapping[str, Summary], cores: Cores) -> bool:
    """Whether there is nothing to tell: no figure of a GPU, and no round under load."""
    shares = [cores.foreign_share(each.most) for each in described.values()]
    return {*described} <= {LOAD.heading} and all(share <= FOREIGN_SHARE for share in shares)


def _summarize(values: Sequence[float], quantity: Quantity) -> Summary:
    three = [value / quantity.unit for value in (min(values), median(values), max(values))]
    texts = [format(value, quantity.form) for value in three]
    return Summary(texts[0] if len({*texts}) == 1 else " / ".join(texts), three[-1])


def _throttled_samples(state: object) -> int:
    return sum(isinstance(value, int) and value & HARMFUL_THROTTLE_REASONS != 0 for value in _values(state, THROTTLING))


def _values(state: object, quantity: Quantity) -> list[float]:
    part = state.get(quantity.part) if isinstance(state, Mapping) else None
    values = part.get(quantity.key) if isinstance(part, Mapping) else None
    if not isinstance(values, list):
        return []
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return [value for value in numbers if abs(value) < _LARGEST]
