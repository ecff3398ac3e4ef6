"""Two network namespaces joined by a veth pair, and what `tc netem` does to it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["device", "server"]
SIDES: tuple[Side, Side] = ("device", "server")
HOSTS = {"device": "10.73.0.1", "server": "10.73.0.2"}


@dataclass(frozen=True, slots=True)
class Shape:
    """A link, the same in both directions. Mbps, milliseconds there and back, percent.

    `jitter` in milliseconds to both sides of half the `rtt`. `reorder`: the share of packets that
    overtake the others by skipping the delay.
    """

    rate: float
    rtt: float
    jitter: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0

    def netem(self) -> list[str]:
        """The arguments of `tc qdisc ... netem` for one direction."""
        words = ["rate", f"{self.rate}mbit", "delay", f"{self.rtt / 2}ms"]
        if self.jitter:
            words += [f"{self.jitter}ms", "25%"]
        if self.reorder:
            words += ["reorder", f"{self.reorder}%", "50%"]
        return [*words, "loss", f"{self.loss}%"]


class Net:
    """The two ends. Shaping one end shapes what leaves it, so both are shaped alike."""

    def __init__(self, name: str) -> None:
        self._names = {side: f"{name}-{side}" for side in SIDES}
        self._shaped = False

    def command(self, side: Side, words: Sequence[str]) -> list[str]:
        """`words` as a command that runs at one end."""
        return ["ip", "netns", "exec", self._names[side], *words]

    def shape(self, shape: Shape | None) -> None:
        """Put a new link in place of the old one; None: as fast as it goes."""
        self.clear()
        if shape is not None:
            for side in SIDES:
                self._tc(side, "add", shape)
            self._shaped = True

    def change(self, shape: Shape) -> None:
        """Change the link in place: what is under way stays under way."""
        for side in SIDES:
            self._tc(side, "change", shape)

    def clear(self) -> None:
        """Take all shaping away."""
        if self._shaped:
            for side in SIDES:
                _do("tc", "-n", self._names[side], "qdisc", "del", "dev", "veth", "root")
        self._shaped = False

    def queue(self, rtt: float, mbps: float, sides: Sequence[Side] = SIDES) -> None:
        """A link whose rate can change while packets wait: `rate`, or `follow` by itself.

        The rate is tbf's there, at the ends in `sides`, and only the delay netem's: netem fixes
        the time a packet leaves when it comes in, so a packet taken in at a low rate would still
        leave at that rate after it has risen.
        """
        self.clear()
        delay = ("delay", f"{rtt / 2}ms", "limit", "10000")
        for side in SIDES:
            at = ("tc", "-n", self._names[side], "qdisc", "add", "dev", "veth")
            _do(*at, "root", "handle", "1:", "netem", *delay)
            if side in sides:
                _do(*at, *TBF, "rate", f"{mbps}mbit")
        self._shaped = True

    def rate(self, mbps: float) -> None:
        """Change the rate of a `queue` in place, both ways: it holds for what waits, too."""
        for side in SIDES:
            at = ("tc", "-n", self._names[side], "qdisc", "change", "dev", "veth")
            _do(*at, *TBF, "rate", f"{mbps}mbit")

    def cut(self) -> None:
        """Pull the plug: the link is down at both ends."""
        for side in SIDES:
            _do("ip", "-n", self._names[side], "link", "set", "veth", "down")

    def mend(self) -> None:
        """Put the plug back in."""
        for side in SIDES:
            _do("ip", "-n", self._names[side], "link", "set", "veth", "up")

    def _tc(self, side: Side, verb: str, shape: Shape) -> None:
        _do("tc", "-n", self._names[side], "qdisc", verb, "dev", "veth", "root", "netem",
            *shape.netem())  # fmt: skip

    def _make(self) -> None:
        device, server = (self._names[side] for side in SIDES)
        _do("ip", "netns", "add", device)
        _do("ip", "netns", "add", server)
        _do("ip", "link", "add", "veth", "netns", device, "type", "veth", "peer", "name", "veth",
            "netns", server)  # fmt: skip
        for side, name in self._names.items():
            _do("ip", "-n", name, "addr", "add", f"{HOSTS[side]}/24", "dev", "veth")
            # A radio sends packets one by one; without this netem would see 64 KB at a time.
            _do("ip", "-n", name, "link", "set", "veth", "gso_max_segs", "1", "up")
            _do("ip", "-n", name, "link", "set", "lo", "up")
            # Nothing that TCP learnt of one link may help or hurt it on the next.
            _do(*self.command(side, ["sh", "-c", FORGET]))

    def _destroy(self) -> None:
        for name in self._names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


FORGET = "echo 1 >/proc/sys/net/ipv4/tcp_no_metrics_save"
TBF = ("parent", "1:", "handle", "2:", "tbf", "burst", "3000", "limit", "1000000")


@contextlib.contextmanager
def joined() -> Iterator[Net]:
    """A fresh pair of ends, gone afterwards."""
    net = Net(f"offboard-{os.getpid()}")
    try:
        net._make()
        yield net
    finally:
        net._destroy()


def _do(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
