"""(in the making)"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .places import Places
from .report import Finding

CHECKS: tuple[Callable[[Places], Iterable[Finding]], ...] = ()
