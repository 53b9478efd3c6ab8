"""The CSV of 2023's benchmark: one file for each setting and implementation, with its columns.

Of a case that was counted and not timed there is no runtime; its file has the counters in columns of their own.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from perf_tests.common.files import write_file
from perf_tests.common.text import clean
from perf_tests.matrix.cases import CHECKPOINTS, IMPLEMENTATIONS, SETTINGS

from .numbers import GIGABYTE
from .rows import ATEN_OPS, FLOPS, MEMORY, Row

COLUMNS = ("Checkpoint", "Dec layers", "Params / M", "Compression / %", "VRAM / GB", "Runtime / s")
COUNTED_COLUMNS = ("ATen ops", "FLOPs")


def write_spreadsheets(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ``<setting>-<implementation>.csv`` for whatever was measured; return the files.

    Raises:
        BadInputError: one cannot be written.
    """
    paths = []
    for setting in SETTINGS:
        for implementation in IMPLEMENTATIONS:
            measured = [row for row in rows if row.setting == setting and row.case(implementation)]
            if measured:
                paths.append(folder / f"{setting}-{implementation}.csv")
                write_file(paths[-1], to_csv(measured, implementation, parameters_at_full_depth(rows)).encode())
    return paths


def parameters_at_full_depth(rows: Sequence[Row]) -> dict[str, float]:
    """The parameter counts of the checkpoints whose whole decoder was measured: what compression is relative to."""
    counts = {}
    for row in rows:
        known = CHECKPOINTS.get(row.checkpoint)
        if known is not None and known.decoder_layers == row.decoder_layers:
            for case in row.cases.values():
                count = case.value("parameter_count")
                if count:
                    counts[row.checkpoint] = count
    return counts


def to_csv(rows: Sequence[Row], implementation: str, full: Mapping[str, float]) -> str:
    """2023's columns; a figure that was not recorded is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    cases = [row.case(implementation) for row in rows]
    counters = (ATEN_OPS, FLOPS) if any(case is not None and case.counted for case in cases) else ()
    writer.writerow([*COLUMNS, *(COUNTED_COLUMNS if counters else ())])
    for row, case in zip(rows, cases, strict=True):
        count, memory = (case.value(key) if case else None for key in ("parameter_count", MEMORY))
        whole = full.get(row.checkpoint)
        compression = 100 * (whole - count) / whole if whole and count is not None else None
        writer.writerow(
            [
                no_formula(row.checkpoint),
                row.decoder_layers,
                _rounded(count, 1e6, 1),
                _rounded(compression, 1, 1),
                _rounded(memory, GIGABYTE, 3),
                _rounded(row.nominal_seconds(implementation), 1, 2),
                *(_rounded(case.value(key) if case else None, 1, 0) for key in counters),
            ]
        )
    return text.getvalue()


def no_formula(value: object) -> str:
    """Text that no spreadsheet takes for a formula."""
    text = clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _rounded(value: float | None, unit: float, digits: int) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"
