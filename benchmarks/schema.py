"""What a result document looks like: schema.json, and a check against it without further packages.

The check knows the part of JSON Schema (draft 2020-12) that schema.json uses, and refuses a schema that uses more.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).with_name("schema.json")
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
_NOTES = {"$schema", "$defs", "title", "description"}
_KNOWN = _NOTES | {"$ref", "type", "required", "properties", "additionalProperties", "items", "minItems"}
_KNOWN |= {"minimum", "pattern", "enum", "allOf", "if", "then"}


def validate(document: Any) -> None:
    """Check a result document.

    Raises:
        ValueError: it is none; the message says where and why.
    """
    schema = json.loads(SCHEMA.read_text())
    wrong = [*_wrong(document, schema, schema, "")] or [*_wrong_spreads(document, "")]
    if wrong:
        raise ValueError("not a result document of benchmarks/schema.json: " + "; ".join(wrong[:5]))


def _wrong(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], place: str) -> Iterator[str]:
    """What in the value does not fit, each with its place."""
    if unknown := schema.keys() - _KNOWN:
        raise NotImplementedError(f"schema.json uses {', '.join(sorted(unknown))}, which schema.py does not check")
    where = place or "the document"
    if "$ref" in schema:
        yield from _wrong(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, place)
    if "type" in schema and not _is(value, schema["type"]):
        yield f"{where} is {type(value).__name__}, expected {schema['type']}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} is {value!r}, expected one of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{where} is {value!r}, expected {schema['pattern']}"
    if "minimum" in schema and not value >= schema["minimum"]:  # also where it is NaN
        yield f"{where} is {value}, expected at least {schema['minimum']}"
    if isinstance(value, dict):
        yield from _wrong_object(value, schema, root, place, where)
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{where} has {len(value)} items, expected at least {schema['minItems']}"
        for i, item in enumerate(value):
            yield from _wrong(item, schema.get("items", {}), root, f"{place}[{i}]")
    for part in schema.get("allOf", ()):
        yield from _wrong(value, part, root, place)
    if "if" in schema and not any(_wrong(value, schema["if"], root, place)):
        yield from _wrong(value, schema["then"], root, place)


def _wrong_object(
    value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], place: str, where: str
) -> Iterator[str]:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where} has no {name!r}"
    for name, item in value.items():
        inner = properties.get(name, others)
        if inner is False:
            yield f"{where} has {name!r}, which is not known"
        else:
            yield from _wrong(item, inner, root, f"{place}.{name}".removeprefix("."))


def _wrong_spreads(value: Any, place: str) -> Iterator[str]:
    """What JSON Schema can't say: min <= median <= max, and that all numbers are finite."""
    if isinstance(value, dict):
        if value.keys() == {"median", "min", "max", "runs"} and not value["min"] <= value["median"] <= value["max"]:
            yield f"{place} has its median outside of min and max"
        for name, item in value.items():
            yield from _wrong_spreads(item, f"{place}.{name}".removeprefix("."))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _wrong_spreads(item, f"{place}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{place} is {value}"


def _is(value: Any, kind: str) -> bool:
    # True is an int in Python and no number in JSON.
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
