"""InstantID in the pipelines of diffusers. The only part of the package that imports diffusers."""

from __future__ import annotations

from importlib.util import find_spec

from ..sources import no_telemetry

if find_spec("diffusers") is None:
    raise ModuleNotFoundError("fast_instantid.pipelines needs diffusers: pip install 'fast-instantid[diffusers]'")
if find_spec("onnxruntime") is not None:  # diffusers imports it
    no_telemetry()

from ..people import Subject
from .alike import until_alike
from .approximations import Approximations
from .detail import detail
from .generate import Sampling, generate
from .instantid import InstantID
from .load import InstantIDFiles, load_pipeline

__all__ = [
    "Approximations",
    "InstantID",
    "InstantIDFiles",
    "Sampling",
    "Subject",
    "detail",
    "generate",
    "load_pipeline",
    "until_alike",
]
