"""The form of a result document: schema.json, and what JSON Schema cannot say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).with_name("schema.json")


def validate(document: Any) -> None:
    """Check a result document.

    Raises:
        ValueError: the document has another form; the message says where and why.
        ImportError: the package jsonschema, of the extra ``dev``, is not installed.
    """
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    wrong = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    if wrong := wrong or [*_wrong_numbers(document, "$")]:
        raise ValueError("not a result document of benchmarks/schema.json: " + "; ".join(wrong[:5]))


def _wrong_numbers(value: Any, place: str) -> Iterator[str]:
    """Spreads without min <= median <= max, and numbers that are not finite."""
    if isinstance(value, dict):
        if value.keys() == {"median", "min", "max", "runs"} and not value["min"] <= value["median"] <= value["max"]:
            yield f"{place} has its median outside of min and max"
        for name, item in value.items():
            yield from _wrong_numbers(item, f"{place}.{name}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _wrong_numbers(item, f"{place}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{place} is {value}"
