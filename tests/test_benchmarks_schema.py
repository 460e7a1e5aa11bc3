"""The form of result documents: that committed ones have it, and that the check finds what is wrong."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest

from benchmarks import schema
from benchmarks.common import Comparison, report

RESULTS = sorted((Path(__file__).parent.parent / "benchmarks" / "results").rglob("*.json"))


@pytest.fixture
def document():
    return json.loads(next(path for path in RESULTS if path.name.startswith("faces--")).read_text())


def test_there_are_results():
    assert RESULTS


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_committed_result_has_the_form(path):
    document = json.loads(path.read_text())
    schema.validate(document)
    assert path.name.startswith(f"{document['suite']}--"), "the suite, the machine, the device"
    assert not re.search(r"(^|[\s\"'(])(/|~/|[A-Z]:\\)\w", path.read_text()), "a path of the machine"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("suite",), "Faces", "$.suite: 'Faces' does not match"),
        (("about", "cores"), 0, "$.about.cores: 0 is less than the minimum of 1"),
        (("about", "cores"), True, "$.about.cores: True is not of type 'integer'"),
        (("about", "date"), "yesterday", "$.about.date: 'yesterday' does not match"),
        (("about", "versions"), {}, "$.about.versions: 'torch' is a required property"),
        (("results",), [], "$.results: [] should be non-empty"),
        (("results", 0, "ratio", "median"), "2", "$.results[0].ratio.median: '2' is not of type 'number'"),
        (("results", 1, "ours_seconds", "runs"), 0, "$.results[1].ours_seconds.runs: 0 is less than the minimum"),
        (("results", 0, "ratio", "min"), 99.0, "$.results[0].ratio has its median outside"),
        (("results", 0, "ratio", "max"), float("inf"), "$.results[0].ratio.max is inf"),
        (("results", 0, "speed"), 1, "$.results[0]: Additional properties are not allowed ('speed' was unexpected)"),
    ],
)
def test_what_is_wrong_is_found_and_named(document, place, value, message):
    schema.validate(document)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        schema.validate(document)


def test_a_missing_part_is_named(document):
    for name in ("suite", "about", "results"):
        partial = copy.deepcopy(document)
        del partial[name]
        with pytest.raises(ValueError, match=f"'{name}' is a required property"):
            schema.validate(partial)


def test_rows_of_other_suites_may_be_of_their_own_form(document):
    document |= {"suite": "memory", "results": [{"name": "one face", "peak_bytes": 3}]}
    schema.validate(document)
    del document["results"][0]["name"]
    with pytest.raises(ValueError, match="'name' is a required property"):
        schema.validate(document)


def test_a_suite_that_writes_another_form_fails_and_loses_nothing(document, tmp_path):
    path = tmp_path / "faces.json"
    report(path, "faces", [Comparison("one", [2.0], [1.0])], document["about"])
    assert json.loads(path.read_text())["results"][0]["ratio"]["median"] == 2
    del document["about"]["versions"]
    with pytest.raises(ValueError, match="'versions' is a required property"):
        report(path, "faces", [Comparison("two", [2.0], [1.0])], document["about"])
    assert json.loads(path.read_text())["results"][0]["name"] == "two"
