"""The tests that a GPU changes: those that skip without one, and those of what chooses a device.

They run on ComfyUI's stand-in. The result has a row for each file, with the messages of its failures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import ROOT, metadata, notes, save, write

FILES = ("test_fused.py", "test_fused_switch.py", "test_pixels.py", "test_recorder.py", "test_placement.py")
FILES += ("comfyui/test_fused.py", "comfyui/test_counts.py", "observe/test_doctor_machine.py")


def run(json_path: Path | None) -> None:
    """Run, print, and save after each test where asked."""
    about = metadata(["torch", "pytest"]) | {"notes": notes(__doc__)}
    outcomes = _Outcomes(json_path, {"suite": "device_tests", "about": about, "results": []})
    pytest.main(
        ["-v", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *(str(ROOT / "tests" / f) for f in FILES)], [outcomes]
    )
    save(json_path, outcomes.document)


class _Outcomes:
    """A plugin of pytest that counts."""

    def __init__(self, path: Path | None, document: dict[str, Any]) -> None:
        self.document, self._path = document, path
        self._rows: dict[str, dict[str, Any]] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome != "passed":
            self._count(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._count(report)

    def _count(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        name = report.nodeid.split("::")[0]
        if name not in self._rows:
            self._rows[name] = {"name": name, "passed": 0, "skipped": 0, "failed": 0, "failures": {}}
            self.document["results"].append(self._rows[name])
        row = self._rows[name]
        row[report.outcome] += 1
        if report.failed:
            row["failures"][report.nodeid] = report.longreprtext[-2000:]
        write(self._path, self.document)
