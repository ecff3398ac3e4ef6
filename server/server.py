"""The server: `python server/server.py` = `offboard-server` = `python -m server`.

Loads a profile, warms its models, says it is ready, serves devices until SIGTERM or SIGINT, then
drains: stops accepting, says Bye, finishes what is outstanding, and exits 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: Python put this folder on the path, not the one above
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from math import nan

from common import channel, journal, registry
from common.client import Client
from common.errors import ConfigError
from common.notify import notify, watch
from common.profile import Profile
from common.profile import load as load_profile
from common.settings import load as load_settings
from server.budget import Bucket
from server.executor import Executor
from server.listener import Listener, check_exposure, parse_address, show_address
from server.memory import MemoryLimits
from server.metrics import Endpoint, Metrics
from server.pulse import Pulse
from server.relay import Relay, client
from server.service import Offer, Service, SessionLimits, wire_limits
from server.settings import Settings
from server.strategy import Strategy

log = logging.getLogger("offboard.server")

STUCK = 60.0
"""Seconds one forward may take before /healthz says that the server is stuck."""
BROKEN = 5
"""Forwards that failed in a row for /healthz to say that the server is broken."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a server; the exit status: 0 drained, 1 the executor died, 2 wrong settings."""
    # Workers of OpenMP that spin while they wait starve the loop and the decoders of a busy CPU.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        settings = load_settings(
            Settings,
            sys.argv[1:] if argv is None else argv,
            prog="offboard-server",
            table="server",
            description="Serve a profile to devices.",
        )
        settings.check()
        journal.configure(
            settings.log_level,
            "%(asctime)s level=%(levelname)s logger=%(name)s %(message)s",
        )
        secret = settings.secret()
        host, port = parse_address(settings.listen)
        check_exposure(host, token=secret, insecure=settings.insecure)
        settings.cloud_secret()
        if settings.cloud:
            parse_address(settings.cloud)
        profile = load_profile(settings.profile)
        metrics = Metrics()
        strategies = _strategies(settings, profile, metrics)
        return channel.run(_serve(settings, secret, host, port, profile, strategies, metrics))
    except ConfigError as error:
        print(f"offboard-server: {error}", file=sys.stderr)
        return 2


def _strategies(settings: Settings, profile: Profile, metrics: Metrics) -> Mapping[str, Strategy]:
    if settings.names == ():
        return {}
    began = time.monotonic()
    import torch  # only now: wrong settings are told without waiting for it

    from server.serving import Serving, strategies

    if settings.threads:
        torch.set_num_threads(settings.threads)
    serving = Serving(profile, settings.device, settings.batch, edge=bool(settings.cloud))
    if settings.rate is not None:
        serving.bucket = Bucket(settings.rate, lambda: metrics.bytes_in, time.monotonic())
    made = strategies(serving, settings.names)
    log.info(
        "profile=%s device=%s strategies=%s loaded in %.1f s",
        *(profile.name, serving.device, ",".join(made), time.monotonic() - began),
    )
    return made


async def _serve(
    settings: Settings,
    secret: str,
    host: str,
    port: int,
    profile: Profile,
    strategies: Mapping[str, Strategy],
    metrics: Metrics,
) -> int:
    stop = asyncio.get_running_loop().create_future()

    def end(status: int, reason: str) -> None:
        if not stop.done():
            stop.set_result((status, reason))

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end, 0, number.name)
    executor = Executor(
        strategies,
        max_wait=settings.max_wait_ms / 1e3,
        max_batch=settings.batch,
        limit=settings.max_queue,
        prepare_threads=settings.decoders,
        metrics=metrics,
        on_death=lambda error: end(1, f"the executor died: {error!r}"),
    )
    offered = set(strategies)
    if settings.cloud:  # what the cloud will answer, if it is there or not yet
        offered |= set(registry.names("server.strategies")) & set(profile.manifest.strategies)
    service = Service(
        Offer.of(profile, offered),
        executor,
        metrics,
        SessionLimits(
            sessions=settings.max_sessions,
            credits=settings.credits,
            memory=MemoryLimits(int(settings.memory_mb * 1e6), seconds=settings.memory_s),
        ),
        secret,
        wire_limits(profile),
    )
    _add_gauges(metrics, service)
    await executor.start()
    watching = asyncio.create_task(watch(Pulse(executor)))
    endpoint = cloud = None
    try:
        if settings.cloud:
            cloud = await _cloud(settings, service, strategies).__aenter__()
        endpoint = _endpoint(settings, service)
        listener = await Listener.open(service, host, port)
        # What was loaded stays: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        address = show_address(host, listener.port)
        print(f"offboard-server ready on {address}", flush=True)
        log.info("ready on=%s profile=%s digest=%.12s", address, profile.name, service.offer.digest)
        notify("READY=1")
        status, reason = await stop
        notify("STOPPING=1")
        log.info("draining reason=%s devices=%d", reason, len(service.sessions))
        # A dead executor finishes nothing: do not wait for it.
        await listener.close("the server is going away", 0.0 if status else settings.grace_s)
    finally:
        if cloud is not None:
            await cloud.close()
        await executor.stop(settings.grace_s)
        watching.cancel()
        if endpoint is not None:
            endpoint.close()
    log.info("stopped status=%d", status)
    return int(status)


def _cloud(settings: Settings, service: Service, held: Collection[str]) -> Client:
    """Make `service` an edge: the client of its cloud, to be entered."""
    relay = Relay(
        settings.cloud, service.offer.digest, held, service.metrics, limit=settings.max_queue
    )
    service.relay = relay
    service.metrics.gauges |= {
        "offboard_cloud_connected": ("Queries can be passed on", lambda: relay.trouble is None),
        "offboard_cloud_pending": ("Queries out to the cloud", lambda: relay.pending),
        "offboard_cloud_rtt_seconds": ("Shortest round trip", lambda: relay.rtt or nan),
    }
    return client(relay, *parse_address(settings.cloud), settings.cloud_secret())


def _endpoint(settings: Settings, service: Service) -> Endpoint | None:
    if not settings.metrics:
        return None
    host, port = parse_address(settings.metrics)
    relay = service.relay
    endpoint = Endpoint(
        host,
        port,
        service.metrics,
        lambda: trouble(service, time.monotonic()),
        lambda: [] if relay is None else [relay.describe()],
    )
    log.info("metrics on=%s", show_address(host, endpoint.port))
    return endpoint


def trouble(service: Service, now: float) -> str | None:
    """Why `service` should not be sent work; None if it may."""
    if service.draining:
        return "draining"
    since = service.executor.running_since
    if since is not None and now - since > STUCK:
        return f"a forward has been running for {now - since:.0f} s"
    if service.executor.failures_in_a_row >= BROKEN:
        return f"{service.executor.failures_in_a_row} forwards failed in a row"
    relay = service.relay
    if relay is not None and relay.trouble is not None and not relay.held:
        return "nothing is served here without the cloud"
    return None


def _add_gauges(metrics: Metrics, service: Service) -> None:
    metrics.gauges |= {
        "offboard_sessions": ("Devices connected", lambda: len(service.sessions)),
        "offboard_pending": ("Queries waiting or running", lambda: service.executor.pending),
        "offboard_memory_bytes": ("Remembered between rounds", lambda: service.memory_bytes),
    }


if __name__ == "__main__":
    sys.exit(main())
