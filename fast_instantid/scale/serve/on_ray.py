"""The service under Ray Serve: replicas of the same app, on one machine or a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ray
from ray import serve


def application(build: Callable[[], Any], **options: Any) -> Any:
    """A Ray Serve application whose replicas each build the app; ``options`` are those of a deployment."""
    # Our own queues refuse before Ray's.
    deployment = serve.deployment(serve.ingress(build)(), name="service", max_ongoing_requests=256, **options)
    return deployment.bind()


def run_on_ray(build: Callable[[], Any], host: str, port: int, replicas: int) -> None:
    """Run replicas in the cluster of ``$RAY_ADDRESS``, or in one that is started here, until interrupted."""
    address = os.environ.get("RAY_ADDRESS", "local")
    alone: Any = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
    ray.init(address, log_to_driver=False, configure_logging=False, **alone)
    there = ray.cluster_resources()
    # A processor's networks want all cores; Ray gives a replica as many threads as it has cores.
    needs = {"num_gpus": 1} if "GPU" in there else {"num_cpus": max(1, int(there["CPU"]) // replicas)}
    serve.start(http_options={"host": host, "port": port})
    serve.run(application(build, num_replicas=replicas, ray_actor_options=needs), name="fast-instantid", blocking=True)
