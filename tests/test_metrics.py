"""Metrics as Prometheus reads them, and the endpoint that shows them."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from common.errors import ConfigError
from server.metrics import Endpoint, Histogram, Metrics


@contextmanager
def endpoint(metrics: Metrics, trouble: str | None = None) -> Iterator[int]:
    with closing(Endpoint("127.0.0.1", 0, metrics, lambda: trouble)) as found:
        yield found.port


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text: str) -> dict[tuple[str, ...], float]:
    """name and sorted label values -> value."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_was_counted_is_shown() -> None:
    metrics = Metrics()
    metrics.bytes_in += 1000
    metrics.result("amot", "sample", 0.003, 280)
    metrics.result("amot", "sample", 0.030, 280)
    metrics.refusal("amot", "expired")
    metrics.refusal("", "unknown")
    metrics.batch("amot", 2, 0.02)
    metrics.wrong_tokens += 1
    metrics.gauges["offboard_sessions"] = ("Devices connected", lambda: 3)
    with endpoint(metrics) as port:
        status, text = get(port, "/metrics")
    assert status == 200
    shown = samples(text)
    assert shown["offboard_results_total", "amot", "sample"] == 2
    assert shown["offboard_refusals_total", "amot", "expired"] == 1
    assert shown["offboard_refusals_total", "", "unknown"] == 1
    assert shown["offboard_bytes_in_total",] == 1000
    assert shown["offboard_bytes_out_total",] == 560
    assert shown["offboard_wrong_tokens_total",] == 1
    assert shown["offboard_sessions",] == 3
    assert shown["offboard_queue_seconds_bucket", "0.005", "amot"] == 1
    assert shown["offboard_queue_seconds_count", "amot"] == 2
    assert shown["offboard_queue_seconds_sum", "amot"] == pytest.approx(0.033)
    assert shown["offboard_batch_size_bucket", "1.0", "amot"] == 0
    assert shown["offboard_batch_size_bucket", "2.0", "amot"] == 1
    assert shown["offboard_compute_seconds_count", "amot"] == 1


def test_a_histogram_counts_each_value_under_its_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == 12.0


def test_health_is_ok_or_says_what_is_wrong() -> None:
    with endpoint(Metrics()) as port:
        assert get(port, "/healthz") == (200, "ok\n")
        assert get(port, "/")[0] == 404
    with endpoint(Metrics(), "draining") as port:
        assert get(port, "/healthz") == (503, "draining\n")


def test_a_port_in_use_is_named() -> None:
    with endpoint(Metrics()) as port, pytest.raises(ConfigError, match=f"--metrics .*:{port}"):
        Endpoint("127.0.0.1", port, Metrics(), lambda: None)
