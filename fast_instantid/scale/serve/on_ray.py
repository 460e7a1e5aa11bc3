"""The service under Ray Serve: replicas of the same app, on one machine or a cluster."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

from ray import serve

from ...errors import BackendError
from ..cluster import ray_cluster
from .server import bound


class _Service:
    """What Ray asks of a replica beside the app, which is ``app`` here."""

    app: Any

    async def check_health(self) -> None:
        """Ray asks first when a replica has started, and sends it requests from then on: after the warm-up."""
        engine = self.app.state.engine
        await asyncio.to_thread(engine.warm_up.join)
        if (failure := engine.failure) is not None:  # Ray starts another replica
            raise BackendError(f"the warm-up failed: {type(failure).__name__}: {failure}") from failure


def application(build: Callable[[], Any], **options: Any) -> Any:
    """A Ray Serve application whose replicas each build the app; ``options`` are those of a deployment."""
    # Our own queues refuse before Ray's.
    made: Any = serve.deployment(serve.ingress(build)(_Service), name="service", max_ongoing_requests=256, **options)
    return made.bind()


def run_on_ray(
    build: Callable[[], Any], host: str, port: int, replicas: int, say: Callable[[str, int], object]
) -> None:
    """Run replicas in the cluster of ``$RAY_ADDRESS``, or in one that is started here, until interrupted.

    ``say`` is told where. A FastInstantIDError if the port is taken, or if the cluster is not reached or fails.
    """
    if not (address := os.environ.pop("RAY_ADDRESS", "")):
        with bound(host, port) as tried:
            port = tried.getsockname()[1]
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with ray_cluster(address, os.cpu_count() or 1) as ray:
        there = ray.cluster_resources()
        kind = "GPU" if "GPU" in there else "CPU"
        if not address and there[kind] < replicas:  # Ray would wait for more machines
            raise BackendError(f"--replicas {replicas}: this machine has {there[kind]:g} {kind}s, and each needs one")
        # Ray gives a replica as many threads as it has cores, and networks on a processor want all of them.
        needs = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": max(1, int(there["CPU"]) // replicas)}
        replicated = application(build, num_replicas=replicas, ray_actor_options=needs)
        serve.start(http_options={"host": host, "port": port})
        say(host, port)
        try:
            serve.run(replicated, name="fast-instantid", blocking=True)
        except RuntimeError as error:  # it says nothing of the cause, which is the last line of a replica's trace
            [service] = serve.status().applications["fast-instantid"].deployments.values()
            why = service.message.strip().rpartition("\n")[2].removeprefix("fast_instantid.errors.")
            raise BackendError(f"no replica starts: {why}") from error
