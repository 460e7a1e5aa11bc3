"""What /metrics tells of one process, for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from .engine import Engine


class Metrics:
    """Counts requests, seconds, queues, batches, pictures and errors, in a registry of its own."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry, "namespace": "fast_instantid"}
        self._requests = Counter("requests", "Answers; errors have a status of 400 or more", ["route", "status"], **own)
        bounds = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
        self._seconds = Histogram("request_seconds", "From request to answer", ["route"], buckets=bounds, **own)
        self.pictures = Counter("pictures", "Pictures drawn", **own)
        sizes = Histogram("batch_size", "Requests run together", ["queue"], buckets=(1, 2, 4, 8, 16, 32), **own)
        waiting = Gauge("waiting", "Requests in the queue", ["queue"], **own)
        for name, queue in (("faces", engine.face_queue), ("pictures", engine.picture_queue)):
            queue.seen = sizes.labels(name).observe
            waiting.labels(name).set_function(lambda queue=queue: queue.waiting)

    def answered(self, scope: dict[str, Any], status: int, seconds: float) -> None:
        """Count an answer."""
        route = getattr(scope.get("route"), "path", "none")  # not the path: a stranger's paths are without number
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)
