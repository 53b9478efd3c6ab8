"""One case of a run: the part of its record that the gate judges, checked while it is read."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import Any, NamedTuple

from .device_state import FOREIGN_SHARE, Cores
from .document import CaseDocument, Unreadable, mapping
from .schema import HARMFUL_THROTTLE_REASONS
from .statistics import Rounds, Yardstick

# Recorded keys that are compared as exact numbers, memory first. Units are in the names.
MEMORY = ("peak_memory_allocated_bytes", "peak_memory_reserved_bytes", "model_memory_bytes")
COUNTERS = ("aten_op_count", "flop_count", "kernel_launch_count", "host_sync_count")
# How near a component comes to the machine's limits.
FRACTION = "fraction_of_limit"
# What defines the work, apart from its hash; ``--allow`` takes these names.
DEFINITION = ("device", "dtype", "batch_size", "new_tokens", "weights", "audio")
# The clock of rounds, control and yardstick, by pytest-benchmark's name for it; this one where none is recorded.
TIMER, WALL_CLOCK = "timer", "perf_counter"

_LARGEST = 2**63
# Seconds outside of these were not measured by any clock.
_SHORTEST, _LONGEST = 1e-12, 1e12


class Parity(NamedTuple):
    """The numerical check; errors, bounds and regrets in logits."""

    max_abs_error: float
    bound: float
    tokens_equal: bool | None
    token_regret: float | None
    token_regret_bound: float | None


class Meanwhile(NamedTuple):
    """What else went on during a pair of rounds.

    ``foreign_share`` is how much others took of the cores that the run needs; 0 where that was not recorded.
    """

    foreign_share: float = 0.0
    gpu_shared: bool = False
    gpu_throttled: bool = False

    @property
    def calm(self) -> bool:
        """Whether that disturbed none of the two."""
        return self.foreign_share <= FOREIGN_SHARE and not self.gpu_shared and not self.gpu_throttled


class Record(NamedTuple):
    """A case of a run.

    ``measured`` is false where there is nothing but an outcome, ``counted`` true where nothing was timed on purpose.
    ``seconds`` are the rounds; ``control_seconds`` the control's and ``yardstick`` what it took, paired with them. All
    are empty where times were not looked at, and so is ``meanwhile``, which has what else went on during each round.
    ``process_rounds`` says how many of the rounds each process measured, empty where there was but one.
    ``definition`` holds ``case_definition``, the keys of ``DEFINITION`` and ``timer``, which is ``None`` where times
    were not looked at; empty in a plain record.
    """

    id: str
    outcome: str
    reason: str | None
    measured: bool = False
    plain: bool = False
    counted: bool = False
    implementation: str | None = None
    definition: Mapping[str, object] = {}
    seconds: tuple[float, ...] = ()
    control: str | None = None
    control_seconds: tuple[float, ...] = ()
    yardstick: Yardstick | None = None
    process_rounds: tuple[int, ...] = ()
    exact: Mapping[str, int | None] = {}
    parity: Parity | None = None
    fraction_of_limit: float | None = None
    meanwhile: tuple[Meanwhile, ...] = ()

    @property
    def ran(self) -> bool:
        """Whether there is a measurement to judge."""
        return self.outcome == "passed" and self.measured

    @property
    def rounds(self) -> Rounds:
        """What its time is judged from, where there is a control."""
        return Rounds(self.control_seconds, self.seconds, self.process_rounds, self.yardstick)


def read_record(case: CaseDocument, machine_info: Mapping[str, Any], *, timed: bool) -> Record:
    """Read a case of a run on the machine described; without ``timed`` its times are not looked at.

    Raises:
        Unreadable: a value that the gate needs is of the wrong kind.
    """
    name, bench = case.id, case.bench
    record = Record(name, case.outcome, case.reason, counted=case.counted)
    if case.outcome != "passed" or not bench:
        return record
    info = mapping(bench.get("extra_info"))
    plain, timed = "schema_version" not in info, timed and not case.counted
    record = record._replace(measured=True, plain=plain)
    if timed:
        record = record._replace(seconds=_read_rounds(name, bench, plain))
    if plain:
        return record
    if timed:
        record = _with_control(record, info.get("control"))
        record = record._replace(
            yardstick=_read_yardstick(record, info.get("yardstick")),
            process_rounds=_read_process_rounds(record, info.get("process_rounds")),
            meanwhile=_read_meanwhile(record, info, machine_info),
        )
    implementation = mapping(bench.get("params")).get("implementation")
    return record._replace(
        implementation=implementation if isinstance(implementation, str) else None,
        definition=_read_definition(name, info) | {TIMER: timer_of(bench) if timed else None},
        exact={key: _read_count(f"{name}: {key}", info.get(key)) for key in (*MEMORY, *COUNTERS)},
        parity=_read_parity(f"{name}: parity", info.get("parity")),
        fraction_of_limit=_number(f"{name}: {FRACTION}", info.get(FRACTION)),
    )


def _read_definition(name: str, info: Mapping[str, Any]) -> dict[str, object]:
    if not isinstance(info.get("case_definition"), str):
        raise Unreadable(f"{name}: case_definition: missing, or not text")
    definition = {key: info.get(key) for key in (*DEFINITION, "case_definition")}
    if isinstance(definition["device"], str):
        definition["device"] = definition["device"].partition(":")[0]  # which of two like GPUs does not matter
    return definition


def timer_of(bench: Mapping[str, Any]) -> str:
    """The clock that a benchmark was timed by."""
    timer = mapping(bench.get("options")).get(TIMER)
    return timer if isinstance(timer, str) else WALL_CLOCK


def _read_rounds(name: str, bench: Mapping[str, Any], plain: bool) -> tuple[float, ...]:
    stats = mapping(bench.get("stats"))
    data = stats.get("data")
    rounds = len(data) if isinstance(data, list) else stats.get("rounds")
    if data is None and plain:  # saved without --benchmark-save-data
        data = [stats.get("median")]
    if not isinstance(data, list) or not data:
        raise Unreadable(f"{name}: stats.data: no raw rounds")
    if rounds == 1:
        raise Unreadable(
            f"{name}: one round: no interval can be had of it; measure more, or leave time out"
            " (--only memory --only counters --only parity)"
        )
    return _read_times(name, data)


def _with_control(record: Record, control: object) -> Record:
    if control is None:
        return record
    if not isinstance(control, Mapping) or not isinstance(control.get("rounds_seconds"), list):
        raise Unreadable(f"{record.id}: control: no rounds_seconds")
    seconds = _read_beside(record, "control", control["rounds_seconds"])
    return record._replace(control=str(control.get("implementation")), control_seconds=seconds)


def _read_yardstick(record: Record, yardstick: object) -> Yardstick | None:
    """Of any version: which are alike is for those to say who compare."""
    if yardstick is None:
        return None
    where = f"{record.id}: yardstick"
    if not isinstance(yardstick, Mapping):
        raise Unreadable(f"{where}: not an object")
    version = _read_count(f"{where}.version", yardstick.get("version"))
    parts = mapping(yardstick.get("rounds_seconds"))
    if version is None or not parts or not all(isinstance(part, list) for part in parts.values()):
        raise Unreadable(f"{where}: no version, or no rounds_seconds by part")
    return Yardstick(version, {name: _read_beside(record, f"yardstick {name}", part) for name, part in parts.items()})


def _read_beside(record: Record, what: str, values: list[Any]) -> tuple[float, ...]:
    """Times that are paired with the rounds."""
    seconds = _read_times(f"{record.id}: {what}", values)
    if len(seconds) != len(record.seconds):
        raise Unreadable(f"{record.id}: {len(seconds)} {what} rounds cannot pair with {len(record.seconds)} rounds")
    return seconds


def _read_process_rounds(record: Record, value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    counts = [_read_count(f"{record.id}: process_rounds", item) for item in value] if isinstance(value, list) else []
    rounds = tuple(count for count in counts if count)
    if len(rounds) != len(counts) or sum(rounds) != len(record.seconds):
        raise Unreadable(f"{record.id}: process_rounds: {value!r:.60} does not divide {len(record.seconds)} rounds")
    return rounds


def _read_times(name: str, values: list[Any]) -> tuple[float, ...]:
    times = tuple(_number(f"{name}: a round", value) for value in values)
    for seconds in times:
        if seconds is None or not _SHORTEST < seconds < _LONGEST:
            raise Unreadable(f"{name}: a round of {seconds} s is no time")
    return tuple(seconds for seconds in times if seconds is not None)


def _read_count(where: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LARGEST:
        raise Unreadable(f"{where}: {value!r:.60} is no count")
    return value


def _read_meanwhile(record: Record, info: Mapping[str, Any], machine_info: Mapping[str, Any]) -> tuple[Meanwhile, ...]:
    """What else went on during each round, from ``device_state``; empty where it has no rounds."""
    where = f"{record.id}: device_state"
    state = mapping(info.get("device_state"))
    rounds, gpu = mapping(state.get("rounds")), mapping(state.get("gpu"))
    if not rounds:
        return ()
    begins, ends, loads = (
        _read_list(f"{where}.rounds.{key}", rounds.get(key), len(record.seconds))
        for key in ("begin_seconds", "end_seconds", "foreign_cpu_cores")
    )
    times = [at or 0.0 for at in _read_list(f"{where}.gpu.at_seconds", gpu.get("at_seconds", []))]
    processes, throttles = (
        [_read_count(f"{where}.gpu.{key}", value) for value in _read_list(f"{where}.gpu.{key}", gpu.get(key, []))]
        for key in ("foreign_processes", "throttle_reasons")
    )
    cores = Cores.of(machine_info, str(info.get("device")))
    found = []
    for begin, end, load in zip(begins, ends, loads, strict=True):
        # From the sample before the round to the one after it.
        during = slice(max(0, bisect_right(times, begin or 0.0) - 1), bisect_left(times, end or 0.0) + 1)
        found.append(
            Meanwhile(
                foreign_share=cores.foreign_share(load) if load is not None else 0.0,
                gpu_shared=any(processes[during]),
                gpu_throttled=any((bits or 0) & HARMFUL_THROTTLE_REASONS for bits in throttles[during]),
            )
        )
    return tuple(found)


def _read_list(where: str, values: object, length: int | None = None) -> list[Any]:
    """Numbers, or ``None`` where nothing was recorded."""
    if not isinstance(values, list) or (length is not None and len(values) != length):
        raise Unreadable(f"{where}: {values!r:.60} is no list" + (f" of {length} values" if length is not None else ""))
    for value in values:
        _number(where, value)
    return values


def _read_parity(where: str, value: object) -> Parity | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise Unreadable(f"{where}: not an object")
    error, bound = (_number(f"{where}.{key}", value.get(key)) for key in ("max_abs_error", "bound"))
    if error is None or bound is None:
        raise Unreadable(f"{where}: no max_abs_error, or no bound")
    equal = value.get("tokens_equal")
    return Parity(
        max_abs_error=error,
        bound=bound,
        tokens_equal=equal if isinstance(equal, bool) else None,
        token_regret=_number(f"{where}.token_regret", value.get("token_regret")),
        token_regret_bound=_number(f"{where}.token_regret_bound", value.get("token_regret_bound")),
    )


def _number(where: str, value: object) -> float | None:
    """A number, NaN and infinities included: whoever uses it says what they mean."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unreadable(f"{where}: {value!r:.60} is no number")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
