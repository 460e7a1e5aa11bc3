"""The service that the benchmark measures, and its clients."""

from __future__ import annotations

import re

import httpx
import pytest

from benchmarks.serve import CLIENTS, elsewhere, new_process, served

from .serving import instantid


def test_clients_of_another_process_ask_all_at_once():
    with new_process() as clients, served(instantid()) as address:
        elsewhere(clients, address, "faces", 2)(0)
        told = httpx.get(f"{address}/metrics").text
    counts = re.findall(r'^fast_instantid_requests_total\{.*"/v1/faces".*\} (\S+)$', told, re.MULTILINE)
    assert counts == [f"{CLIENTS}.0"]


def test_the_service_ends_when_a_measurement_fails():
    addresses: list[str] = []

    def measure() -> None:
        with served(instantid()) as address:
            addresses.append(address)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure()
    with pytest.raises(httpx.ConnectError):
        httpx.get(addresses[0])
