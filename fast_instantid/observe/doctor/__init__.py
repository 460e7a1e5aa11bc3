"""The doctor: checks of this machine, its packages and model files, each with what to do."""

from ..report import Finding as Finding, Level as Level, Report as Report
from .examination import examine as examine
from .places import Places as Places
