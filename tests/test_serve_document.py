"""The service against its own OpenAPI document: whatever that allows is answered as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .serving import serving


def schemathesis(examples: int, folder: Path, phases: str = "fuzzing", seed: int = 1) -> str:
    """Ask a service whatever its document allows, and what it does not. Its report, if something failed."""
    with serving(persons=folder / "persons", steps=4, area=128 * 128, seconds=30.0) as client:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{client.base_url}/openapi.json", "--no-color"]
        command += ["--max-examples", str(examples), "--phases", phases, "--seed", str(seed)]
        command += ["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"]
        command += ["--checks", "response_schema_conformance", "--max-failures", "3", "--request-timeout", "300"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=600)
        return "" if done.returncode == 0 else done.stdout + done.stderr


def test_whatever_the_document_allows_is_answered_as_it_says(tmp_path):
    assert schemathesis(5, tmp_path) == ""
