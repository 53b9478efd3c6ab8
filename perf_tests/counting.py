"""How a case is counted where nothing is timed (``--perf-counters-only``): exact figures, no noise, no GPU needed.

Operators and FLOPs of every case; the allocator's peak of those whose rounds are short enough to be run for real on
a CPU, and on a GPU of all. Parity is not checked: the ordinary tests do, and it would take as long as all the rest.
"""

from functools import partial
from typing import Any

from .cases import Case
from .measure.hollow import count_hollow_round, warm_up_without_products
from .measure.memory import model_bytes
from .measure.time import Benchmark
from .procedure import Procedure, Workspace, counters_record, record_counters, record_memory
from .schema import TIMED_ONLY
from .subject import Stage, Subject


class Counting(Procedure):
    """Counts cases instead of measuring them; what it finds is left in pytest-benchmark's fixture, which never runs."""

    def measure(self, case: Case, workspace: Workspace, stage: Stage, benchmark: Benchmark) -> None:
        """Count ``case``.

        Raises:
            EndedEarlyError: the case did not generate what was forced.
        """
        benchmark.group = case.cell.id
        self.progress.phase("building the model")
        subject = stage.build(case.implementation)
        info = benchmark.extra_info
        info.update(dict.fromkeys(TIMED_ONLY))
        info.update(self.describe(case, subject))
        if self.plan.computes(case.setting):
            self.progress.phase("memory")
            warm_up = None if self.plan.on_cuda else partial(warm_up_without_products, subject)
            info.update(record_memory(subject, warm_up))
        self.progress.phase("counters")
        info.update(record_counters(subject) if self.plan.on_cuda else self.count_hollow(case, subject))
        info["attention_backend"] = subject.attention_backend()

    def count_hollow(self, case: Case, subject: Subject) -> dict[str, Any]:
        """The counters by way of hollow rounds, and the memory's keys where it was not measured."""
        record = counters_record(count_hollow_round(subject, case))
        if self.plan.computes(case.setting):
            return record
        return record | {
            "model_memory_bytes": model_bytes(subject.model),
            "peak_memory_allocated_bytes": None,
            "peak_memory_reserved_bytes": None,
        }
