"""What the server counts, and the local port that shows it: /metrics (Prometheus) and /healthz.

Counting is plain arithmetic on the hot path, each number written by one thread only;
prometheus-client comes in when somebody asks.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from common.client import Reply

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Histogram:
    """Counts of observations by upper bound, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), as Prometheus wants them."""
        total = 0
        pairs = []
        for bound, count in zip((*self.bounds, float("inf")), list(self.counts), strict=True):
            total += count
            pairs.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
        return pairs


class Metrics:
    """The server's numbers. `gauges`: name -> (help, function read at every scrape)."""

    def __init__(self) -> None:
        self.results: dict[tuple[str, str], int] = {}
        """Answered queries by (strategy, step)."""
        self.refusals: dict[tuple[str, str], int] = {}
        """Refused queries by (strategy, code)."""
        self.bytes_in = 0
        """Bytes of whole query packets."""
        self.bytes_out = 0
        """Bytes of whole result packets."""
        self.wrong_tokens = 0
        self.passed: dict[tuple[str, str], int] = {}
        """Queries passed on to the cloud by (strategy, "answered" or why not)."""
        self.bytes_cloud = [0, 0]
        """Bytes of whole packets to the cloud and back, of queries that it answered."""
        self.passed_seconds: dict[str, Histogram] = {}
        self.queue: dict[str, Histogram] = {}
        self.compute: dict[str, Histogram] = {}
        self.sizes: dict[str, Histogram] = {}
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def result(self, strategy: str, step: str, queue_s: float, size: int) -> None:
        """A query was answered by `size` bytes after `queue_s` seconds of waiting. Loop only."""
        self.answered(strategy, step, size)
        histogram = self.queue.get(strategy)
        if histogram is None:
            histogram = self.queue[strategy] = Histogram(SECONDS)
        histogram.observe(queue_s)

    def answered(self, strategy: str, step: str, size: int) -> None:
        """A query was answered by `size` bytes, here or by the cloud. Loop only."""
        key = (strategy, step)
        self.results[key] = self.results.get(key, 0) + 1
        self.bytes_out += size

    def refusal(self, strategy: str, code: str) -> None:
        """A query was refused. `strategy`: a served one, or "" (labels stay bounded). Loop only."""
        key = (strategy, code)
        self.refusals[key] = self.refusals.get(key, 0) + 1

    def passed_on(self, strategy: str, outcome: str, reply: Reply | None = None) -> None:
        """The cloud answered a query by `reply`, or something else came of it. Loop only."""
        key = (strategy, outcome)
        self.passed[key] = self.passed.get(key, 0) + 1
        if reply is None:
            return
        self.bytes_cloud[0] += reply.bytes_up
        self.bytes_cloud[1] += reply.bytes_down
        histogram = self.passed_seconds.get(strategy)
        if histogram is None:
            histogram = self.passed_seconds[strategy] = Histogram(SECONDS)
        histogram.observe(reply.elapsed_ms / 1e3)

    def passages(self) -> tuple[int, int]:
        """Queries that the cloud answered, and those it did not."""
        every = self.passed.copy().items()
        answered = sum(count for (_, outcome), count in every if outcome == "answered")
        return answered, sum(count for _, count in every) - answered

    def batch(self, strategy: str, size: int, seconds: float) -> None:
        """A batch of `size` works took `seconds` on the accelerator. Executor only."""
        if strategy not in self.sizes:
            self.sizes[strategy] = Histogram(SIZES)
            self.compute[strategy] = Histogram(SECONDS)
        self.sizes[strategy].observe(size)
        self.compute[strategy].observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """What prometheus-client calls at a scrape."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        results = CounterMetricFamily(
            "offboard_results", "Queries answered", labels=("strategy", "step")
        )
        for labels, count in self.results.copy().items():
            results.add_metric(labels, count)
        yield results
        refusals = CounterMetricFamily(
            "offboard_refusals", "Queries refused", labels=("strategy", "code")
        )
        for labels, count in self.refusals.copy().items():
            refusals.add_metric(labels, count)
        yield refusals
        passed = CounterMetricFamily(
            "offboard_cloud_queries", "Queries passed on", labels=("strategy", "outcome")
        )
        for labels, count in self.passed.copy().items():
            passed.add_metric(labels, count)
        yield passed
        up, down = self.bytes_cloud
        yield CounterMetricFamily("offboard_cloud_bytes_up", "Bytes to the cloud", value=up)
        yield CounterMetricFamily("offboard_cloud_bytes_down", "Bytes from it", value=down)
        yield CounterMetricFamily("offboard_bytes_in", "Bytes of queries", value=self.bytes_in)
        yield CounterMetricFamily("offboard_bytes_out", "Bytes of results", value=self.bytes_out)
        yield CounterMetricFamily(
            "offboard_wrong_tokens", "Devices refused", value=self.wrong_tokens
        )
        for name, text, histograms in (
            ("offboard_queue_seconds", "Waiting for a batch", self.queue),
            ("offboard_compute_seconds", "One batch on the accelerator", self.compute),
            ("offboard_batch_size", "Works in one batch", self.sizes),
            ("offboard_cloud_seconds", "The cloud's answer, link and all", self.passed_seconds),
        ):
            family = HistogramMetricFamily(name, text, labels=("strategy",))
            for strategy, histogram in histograms.copy().items():
                family.add_metric((strategy,), histogram.cumulative(), histogram.sum)
            yield family
        for name, (text, read) in self.gauges.items():
            yield GaugeMetricFamily(name, text, value=read())


class Endpoint:
    """An HTTP server on its own threads: /metrics, and /healthz (200 "ok", or 503 and why not).

    `health` returns None, or why the server should not be sent work; `notes`: further lines, for
    people. Raises ConfigError if it cannot listen.
    """

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Metrics,
        health: Callable[[], str | None],
        notes: Callable[[], list[str]] = list,
    ) -> None:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_LATEST

        registry = CollectorRegistry()
        registry.register(metrics)

        class Handler(BaseHTTPRequestHandler):
            timeout = 5.0  # seconds a slow reader may hold a thread

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._reply(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                elif self.path == "/healthz":
                    trouble = health()
                    code, text = (503, trouble) if trouble else (200, "ok")
                    lines = "\n".join([text, *notes(), ""])
                    self._reply(code, "text/plain; charset=utf-8", lines.encode())
                else:
                    self._reply(404, "text/plain", b"try /metrics or /healthz\n")

            def _reply(self, code: int, kind: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Scrapes are no change of state, so they are not logged."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise ConfigError(f"--metrics {host}:{port}: {error.strerror or error}") from None
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5.0)
