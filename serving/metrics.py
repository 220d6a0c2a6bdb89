"""What Prometheus is told of a server, or of all its workers, whichever of them is asked."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

LATENCIES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
QUEUE_TIMES = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # in the environment before prometheus_client is imported: workers count there


class Metrics:
    """Counters of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kept = {"registry": self.registry}
        self.requests = Counter("asr_requests", "Requests by route and status code", ("route", "code"), **kept)
        self.latency = Histogram("asr_request_seconds", "From request to answer", ("route",), buckets=LATENCIES, **kept)
        self.queue_seconds = Histogram("asr_queue_seconds", "From a piece's reading to its batch", buckets=QUEUE_TIMES, **kept)
        self.batch_size = Histogram("asr_batch_size", "Pieces heard at once", buckets=BATCH_SIZES, **kept)
        self.audio_seconds = Counter("asr_audio_seconds", "Seconds of audio that the network has heard", **kept)
        self.streams = Counter("asr_streams", "Live connections that have ended, by WebSocket code", ("code",), **kept)
        kept["multiprocess_mode"] = "livesum"
        self.under_way = Gauge("asr_requests_under_way", "Recordings being received or transcribed", **kept)
        self.active_streams = Gauge("asr_active_streams", "Live connections", **kept)

    def text(self) -> bytes:
        """Prometheus' text format."""
        if SHARED_FOLDER not in os.environ:
            return generate_latest(self.registry)
        everybody = CollectorRegistry()
        MultiProcessCollector(everybody)
        return generate_latest(everybody)
