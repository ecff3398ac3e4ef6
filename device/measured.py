"""What `./run measure` put into a profile on a vision transformer: its layers, and bytes sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import ConfigError
from device.machine import Machine
from device.scheduler import Coding, Decision, Scheduler, Shape, costs


@dataclass(frozen=True)
class Measured:
    """Both machines; of each way to send tokens (`codings`) and frames its bytes and time."""

    shape: Shape
    device: Machine
    server: Machine
    codings: Mapping[str, Coding]
    frames: Mapping[str, Coding]

    @classmethod
    def read(cls, latency: Mapping[str, Any], layers: int, tokens: int) -> Measured:
        """A profile's "latency". Raises ConfigError if it is none."""
        device, server = (Machine.read(latency.get(side, {})) for side in ("device", "server"))
        try:
            codings, frames = (
                {name: Coding(name, **value) for name, value in latency[kind].items()}
                for kind in ("codings", "frames")
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"latency of codings: {error!r}: ./run measure PROFILE again"
            ) from None
        return cls(Shape(layers, tokens), device, server, codings, frames)

    def sent(self, precision: str, frame: str) -> tuple[Coding, Coding]:
        """How tokens and frames are sent. Raises ConfigError: that was not measured."""
        try:
            return self.codings[precision], self.frames[frame]
        except KeyError as error:
            raise ConfigError(f"{error} was not measured: ./run measure PROFILE again") from None

    def fastest(
        self, merges: Sequence[int], coding: Coding, frame: Coding, throughput: float, rtt: float
    ) -> Decision:
        """The split of least predicted latency where the merging is given.

        Kang et al., "Neurosurgeon", ASPLOS 2017, section 4, and Janus's baseline "Mixed" (section
        V-B). `merges`: per layer; `throughput`: bytes per ms; `rtt`: ms.
        """
        made = costs(
            self.shape, self.device, self.server, [coding], [frame], merges=[(0.0, merges)]
        )
        # Nothing takes less than no time: none meets this, so the fastest is taken.
        return Scheduler(made).decide(throughput, -1.0, rtt)
