"""The service against many requests that its OpenAPI document allows, and many that it does not."""

from __future__ import annotations

from tests.test_serve_document import schemathesis


def test_the_document_holds(trials, tmp_path):
    for source in trials:
        assert schemathesis(100, tmp_path, "coverage,fuzzing", source.number) == ""
