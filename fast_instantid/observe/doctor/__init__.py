"""What is wrong on this machine, why it matters, and what to do about it."""

from .examination import examine
from .places import Places
from .report import Finding, Level, Report

__all__ = ["Finding", "Level", "Places", "Report", "examine"]
