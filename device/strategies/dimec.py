"""DIMEC-DC on the device: pools by data cartography, an exit behind the device's last layer.

Bajpai and Hanawal, "Distributed Inference on Mobile Edge and Cloud: A Data-Cartography based
Clustering Approach", Algorithm 2.
"""

from __future__ import annotations

from device import tiers
from device.bundle import Bundle
from device.params import Param
from device.tiers import Tiers

NAME = "dimec"
PARAMS: dict[str, Param] = tiers.PARAMS


def create(bundle: Bundle) -> Tiers:
    """The strategy. Raises ConfigError without a runtime, Unavailable without its files."""
    return tiers.load(NAME, PARAMS, bundle, early=False)
