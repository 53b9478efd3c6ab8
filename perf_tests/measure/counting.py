"""How a case is counted where nothing is timed (``--perf-counters-only``): exact figures, no noise, no GPU needed.

Operators and FLOPs of every case; the allocator's peak of those whose rounds are short enough to be run for real on
a CPU, and on a GPU of all. Parity is not checked: the ordinary tests do, and it would take as long as all the rest.
"""

from perf_tests.matrix.cases import Case
from perf_tests.runs.schema import COMPONENT_KEYS, TIMED_ONLY
from perf_tests.subjects.subject import Stage
from perf_tests.subjects.workspace import Workspace

from .memory import model_bytes
from .procedure import Procedure
from .time import Benchmark


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
        info.update(dict.fromkeys((*TIMED_ONLY, *COMPONENT_KEYS, "op_shares")))
        info.update(self.describe(case, subject))
        if self.plan.computes(case.setting):
            self.progress.phase("memory")
            info.update(self.measure_memory(case, subject)[0])
        self.progress.phase("counters")
        info.update(self.count(case, subject))
        if not self.plan.computes(case.setting):
            info["model_memory_bytes"] = model_bytes(subject.model)
            info["peak_memory_allocated_bytes"] = info["peak_memory_reserved_bytes"] = None
        info["attention_backend"] = subject.attention_backend()
        info["pass_seconds"] = self.progress.pass_seconds()
