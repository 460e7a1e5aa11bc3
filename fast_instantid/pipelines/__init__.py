"""InstantID in the pipelines of diffusers. The only part of the package that imports diffusers."""

from __future__ import annotations

from importlib.util import find_spec

from ..sources import no_telemetry

if find_spec("diffusers") is None:
    raise ModuleNotFoundError("fast_instantid.pipelines needs diffusers: pip install 'fast-instantid[diffusers]'")
if find_spec("onnxruntime") is not None:  # diffusers imports it
    no_telemetry()

from ..people import Subject as Subject
from .alike import until_alike as until_alike
from .approximations import Approximations as Approximations
from .detail import detail as detail
from .generate import Sampling as Sampling, generate as generate
from .instantid import InstantID as InstantID
from .load import InstantIDFiles as InstantIDFiles, load_pipeline as load_pipeline
