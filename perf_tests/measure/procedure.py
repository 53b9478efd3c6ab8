"""How a case is measured: memory, parity, counters, then paired rounds, each in a pass of its own."""

import gc
import hashlib
import json
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, Protocol

import torch

from perf_tests.common.intervals import estimate_speedup
from perf_tests.machine.allocator import settle_allocator
from perf_tests.machine.watch import StateWatch
from perf_tests.matrix.cases import CHECKPOINTS, SETTINGS, WINDOW_SECONDS, Case, Cell
from perf_tests.matrix.components import WORKS, chooses_plain_text, setting_of
from perf_tests.matrix.plan import Plan
from perf_tests.runs.schema import SCHEMA_VERSION
from perf_tests.subjects.audio import SYNTHETIC_VERSION, Speech
from perf_tests.subjects.subject import FEATURES_VERSION, SHORT, Stage, Subject
from perf_tests.subjects.weights import SEED, WEIGHTS_VERSION
from perf_tests.subjects.workspace import CONTROL, Workspace

from .counters import Counters, count_round
from .hollow import count_hollow_round, warm_up_without_products
from .memory import measure_round
from .moving import PAIRS_PER_PLACE, move_models, stay
from .profile import profile_round
from .rounds import choose_rounds
from .time import WALL_CLOCK, Benchmark, time_rounds
from .yardstick import Yardstick, is_available, make_record


class Progress(Protocol):
    """Is told what a case is doing, between passes and between rounds."""

    def phase(self, name: str, rounds: int = 0) -> None:
        """A pass begins; with a number of rounds to come, if it has rounds."""

    def rounds_done(self, done: int) -> None:
        """So many rounds of the pass are done."""

    def pass_seconds(self) -> dict[str, float]:
        """What each pass of the case has taken so far, in seconds, by name."""
        ...


class Procedure:
    """Measures cases as ``plan`` says, and leaves what it finds in pytest-benchmark's fixture."""

    def __init__(self, plan: Plan, speech: Speech, progress: Progress) -> None:
        self.plan = plan
        self.speech = speech
        self.progress = progress

    def measure(self, case: Case, workspace: Workspace, stage: Stage, benchmark: Benchmark) -> None:
        """Run all passes over ``case``.

        Raises:
            ParityError: the outputs are not the original's; nothing was timed then.
        """
        benchmark.group = case.cell.id
        self.progress.phase("building the model")
        subject = stage.build(case.implementation)
        info = benchmark.extra_info
        info.update(self.describe(case, subject))
        self.progress.phase("memory")
        memory, output = self.measure_memory(case, subject)
        info.update(memory)
        self.progress.phase("parity")
        info["parity"] = workspace.check_parity(subject, stage, output)
        del output
        self.progress.phase("counters")
        info.update(self.count(case, subject))
        info["attention_backend"] = subject.attention_backend()
        info["op_shares"] = None
        if self.plan.profile is not None:
            self.progress.phase("profile")
            floor = workspace.floor(subject)
            info["op_shares"] = profile_round(subject, self.plan.profile, case, floor.seconds if floor else None)
        info.update(self.time(case, subject, benchmark, stage))
        info.update(workspace.findings(subject, wall_seconds(benchmark)))
        info["pass_seconds"] = self.progress.pass_seconds()

    def measure_memory(self, case: Case, subject: Subject) -> tuple[dict[str, Any], Any]:
        """The memory pass: its record, and what its round has computed."""
        warm_up: Callable[[], object] | None = None
        if self.plan.counts_hollow(case.setting):
            warm_up = partial(warm_up_without_products, subject)
        elif case.setting in SETTINGS and not subject.keeps_buffers:
            warm_up = partial(subject.generate, **SHORT)
        return record_memory(subject, warm_up)

    def count(self, case: Case, subject: Subject) -> dict[str, Any]:
        if self.plan.counts_hollow(case.setting):
            return record_counters(count_hollow_round(subject, case))
        return record_counters(count_round(subject, getattr(SETTINGS.get(case.setting), "new_tokens", None)))

    def time(self, case: Case, subject: Subject, benchmark: Benchmark, stage: Stage) -> dict[str, Any]:
        """The timed pass; returns what it adds to the record."""
        control = yardstick = None
        move: Callable[[], None] = stay
        if case.implementation == "flash":
            original = stage.build(CONTROL)
            control = original.run_round
            if self.plan.uses_yardstick(case.setting):
                fixed = Yardstick(case.cell, benchmark._timer) if is_available() else None
                yardstick = fixed.measure if fixed is not None else None
                move = partial(move_models, stage, subject, original, fixed)
        gc.collect()
        settle_allocator()
        rounds, aim = self.plan.rounds_of(case.setting), self.plan.aim_of(case.setting)
        # Beside no control the counters' pass was warm-up enough, where it ran a whole `generate`.
        warm_ups = 0 if control is None and self.plan.on_cuda and case.setting in SETTINGS else 1
        if control is not None and aim is not None and not benchmark.disabled:
            self.progress.phase("choosing the number of rounds")
            rounds, warm_ups = choose_rounds(subject.run_round, control, aim, yardstick, move), 0
        self.progress.phase("timing", rounds)
        with StateWatch(self.plan.device) as watch:

            def between(done: int) -> None:
                self.progress.rounds_done(done)
                if done % PAIRS_PER_PLACE == 0:
                    move()
                watch.between_rounds(done)

            beside = time_rounds(
                benchmark,
                subject.run_round,
                rounds,
                warm_ups=warm_ups,
                control=control,
                control_after=self.plan.control_after,
                yardstick=yardstick,
                between=between,
            )
        seconds = list(benchmark.stats.stats.data) if benchmark.stats is not None else []
        record: dict[str, Any] = dict.fromkeys(("control", "speedup", "yardstick", "process_rounds"))
        record["device_state"] = watch.record(beside.spans)
        if beside.control_seconds and seconds:
            position, control_seconds = "after" if self.plan.control_after else "before", beside.control_seconds
            record["control"] = {"implementation": CONTROL, "rounds_seconds": control_seconds, "position": position}
            record["speedup"] = estimate_speedup(control_seconds, seconds)._asdict()
        if beside.readings and seconds:
            record["yardstick"] = make_record(beside.readings)
        return record | rates(case, wall_seconds(benchmark))

    def describe(self, case: Case, subject: Subject) -> dict[str, Any]:
        """What was run, on what."""
        setting = setting_of(case.setting)
        parameters = {id(parameter): parameter.numel() for parameter in subject.model.parameters()}
        return {
            "schema_version": SCHEMA_VERSION,
            "case_definition": define(case.cell, self.plan, self.speech.name),
            "device": self.plan.device,
            "dtype": self.plan.dtype,
            "batch_size": len(subject.features),
            "new_tokens": setting.new_tokens,
            "weights": self.plan.weights,
            "audio": self.speech.name,
            "parameter_count": sum(parameters.values()),
        }


def record_memory(subject: Subject, warm_up: Callable[[], object] | None = None) -> tuple[dict[str, Any], Any]:
    """The memory pass, under the recorded keys, and what its round has computed."""
    memory, output = measure_round(subject, warm_up)
    record = {
        "model_memory_bytes": memory.model,
        "peak_memory_allocated_bytes": memory.peak_allocated,
        "peak_memory_reserved_bytes": memory.peak_reserved,
    }
    return record, output


def record_counters(counters: Counters) -> dict[str, Any]:
    """Counters under the recorded keys."""
    return {
        "aten_op_count": counters.aten_ops,
        "flop_count": counters.flops,
        "kernel_launch_count": counters.kernel_launches,
        "host_sync_count": counters.host_syncs,
        "op_counts": counters.by_operator,
    }


def wall_seconds(benchmark: Benchmark) -> list[float]:
    """The rounds, where they are of wall time; none where another clock was asked for."""
    if benchmark.stats is None or benchmark._timer is not WALL_CLOCK:
        return []
    return list(benchmark.stats.stats.data)


def rates(case: Case, seconds: list[float]) -> dict[str, float | None]:
    """Tokens per second and real-time factor of the median round; ``None`` where no wall time was measured."""
    if not seconds:
        return {"tokens_per_second": None, "real_time_factor": None}
    setting, middle = setting_of(case.setting), median(seconds)
    audio = WORKS[case.setting].seconds if case.setting in WORKS else WINDOW_SECONDS
    tokens = setting.batch_size * setting.new_tokens
    return {
        "tokens_per_second": tokens / middle if tokens else None,
        "real_time_factor": middle / (setting.batch_size * audio) if audio else None,
    }


def define(cell: Cell, plan: Plan, audio: str) -> str:
    """Short hash of what defines the work: two runs with the same one did the same.

    Not in it: the implementation (the id has it), the commit, the package's version, the number of rounds.
    """
    setting = setting_of(cell.setting)
    definition: dict[str, Any] = {
        "dims": CHECKPOINTS[cell.checkpoint]._asdict(),
        "decoder_layers": cell.decoder_layers,
        "batch_size": setting.batch_size,
        "new_tokens": setting.new_tokens,
        "dtype": plan.dtype,
        "device_type": torch.device(plan.device).type,
        "weights": plan.weights,
        "weights_version": WEIGHTS_VERSION,
        "seed": SEED,
        "audio": audio,
        "audio_version": SYNTHETIC_VERSION,
        "features_version": FEATURES_VERSION,
        "plain_text": chooses_plain_text(cell.setting, plan.weights),
    }
    if cell.setting in WORKS:
        work = WORKS[cell.setting]._asdict()
        definition["work"] = {key: value for key, value in work.items() if key != "rounds"}
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:12]
