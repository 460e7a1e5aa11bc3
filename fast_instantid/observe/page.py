"""A profile as one HTML page that needs nothing else."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .profile import Profile


def profile_page(profile: Profile) -> str:
    """The page of one run."""
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(profile.title)}</title><pre>{escape(profile.tree())}</pre>"
    )
