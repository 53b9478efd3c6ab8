"""Checking a JSON object against the registry of recorded keys (``schema.py``): what is wrong comes back as text."""

import math
from collections.abc import Iterator, Mapping

from .schema import Field


def validate(value: object, fields: tuple[Field, ...], where: str, *, only: bool = True) -> Iterator[str]:
    """Check that ``value`` is an object with every key of ``fields``, and no other if ``only``."""
    if not isinstance(value, Mapping):
        yield f"{where}: missing, or not an object"
        return
    for field in fields:
        if field.name not in value:
            yield f"{where}.{field.name}: missing"
        else:
            yield from _validate_value(value[field.name], field, f"{where}.{field.name}")
    if only:
        for unknown in sorted(set(value) - {field.name for field in fields}):
            yield f"{where}.{unknown}: not declared in perf_tests/runs/schema.py"


def _validate_value(value: object, field: Field, where: str) -> Iterator[str]:
    if value is None:
        if not field.nullable:
            yield f"{where}: null"
    elif field.kind == "object":
        yield from validate(value, field.fields, where)
    elif not _is(field.kind, value):
        yield f"{where}: {value!r} is not of kind {field.kind}"


def _is(kind: str, value: object) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case "numbers":
            return isinstance(value, list) and all(_is("number", item) for item in value)
        case "numbers or nulls":
            return isinstance(value, list) and all(item is None or _is("number", item) for item in value)
        case "strings":
            return isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values())
        case "counts":
            return isinstance(value, Mapping) and all(_is("integer", item) for item in value.values())
        case "numbers by name":
            return isinstance(value, Mapping) and all(_is("number", item) for item in value.values())
    raise ValueError(f"no such kind: {kind}")
