"""The page's sections, one file each.

To add one, write a function from a ``Subject`` to a ``Section`` and name it in ``SECTIONS``. A section is made of what
``perf_tests.report.content`` has, and the template shows any; ``None`` leaves it out.
"""

from collections.abc import Callable

from perf_tests.report.content import Section
from perf_tests.report.subject import Subject

from . import counters, history, limits, machine, memory, others, overview, parity, tables, time, trace

SECTIONS: tuple[Callable[[Subject], Section | None], ...] = (
    overview.build,
    tables.build,
    time.build,
    trace.build,
    memory.build,
    counters.build,
    parity.build,
    limits.build,
    others.build,
    history.build,
    machine.build,
)
