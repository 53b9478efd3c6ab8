"""pytest plugin for the tests' own runs of the suite: a container with one and a half cores."""

import tempfile
from pathlib import Path

from perf_tests.machine import cores

cores.CGROUPS = Path(tempfile.mkdtemp())
cores.MEMBERSHIP = cores.CGROUPS / "membership"
cores.MEMBERSHIP.write_text("0::/\n")
(cores.CGROUPS / "cpu.max").write_text("150000 100000\n")
