"""Devices and dtypes: decided once, refused with a reason."""

from __future__ import annotations

import pytest
import torch

from fast_instantid.errors import BackendError
from fast_instantid.placement import DTYPES, Placement, best_device


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes_by_name_and_by_themselves(name):
    expected = Placement(torch.device("cpu"), DTYPES[name])
    assert Placement.resolve("cpu", name) == expected
    assert Placement.resolve(torch.device("cpu"), DTYPES[name]) == expected


def test_what_was_not_said_is_filled_in():
    placement = Placement.resolve()
    assert placement.device == best_device()
    assert placement.dtype == (torch.float16 if placement.device.type == "cuda" else torch.float32)
    assert Placement.resolve("cpu") == Placement(torch.device("cpu"), torch.float32)
    torch.zeros(1, device=placement.device, dtype=placement.dtype).add_(1)


@pytest.mark.parametrize("dtype", ["float", "fp16", "int8", torch.int8, torch.float64, torch.bool])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(BackendError, match="choose one of float32, float16, bfloat16"):
        Placement.resolve("cpu", dtype)


@pytest.mark.parametrize(
    "device", ["gpu", "cuda:x", "cuda:-1", "", "cpu:0:0", "meta", "cpu:99999999999999999999", "hpu", "x" * 9999]
)
def test_words_that_are_no_device_are_refused(device):
    with pytest.raises(BackendError, match=r"is not known to torch"):
        Placement.resolve(device)


@pytest.mark.parametrize(
    ("device", "present"),
    [
        ("cuda", torch.cuda.is_available()),
        ("cuda:0", torch.cuda.is_available()),
        ("xpu", torch.xpu.is_available()),
        ("mps", torch.backends.mps.is_available()),
        ("cpu", True),
    ],
)
def test_a_device_is_resolved_where_it_is_and_refused_where_not(device, present):
    if present:
        assert Placement.resolve(device).device == torch.device(device)
    else:
        with pytest.raises(BackendError, match=rf"device '{device}' was asked for.*use '{best_device()}'"):
            Placement.resolve(device)


def test_a_cuda_device_beyond_the_last_is_refused():
    with pytest.raises(BackendError, match=r"'cuda:99' was asked for"):
        Placement.resolve("cuda:99")
