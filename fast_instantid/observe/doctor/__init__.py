"""The doctor: checks of this machine, its packages and model files, each with what to do."""

from ..report import Finding, Level, Report
from .examination import examine
from .places import Places

__all__ = ["Finding", "Level", "Places", "Report", "examine"]
