"""DIMEE on the device: pools by the first confident exit, an exit behind every layer.

Bajpai and Hanawal, "Distributed Inference on Mobile Edge and Cloud: An Early Exit based Clustering
Approach", Algorithm 2. A sample leaves at the first exit whose confidence reaches `alpha`, the
threshold of its Algorithm 1; at the device's last layer it is answered in any case.
"""

from __future__ import annotations

from device import tiers
from device.bundle import Bundle
from device.params import Param
from device.tiers import Tiers

NAME = "dimee"
PARAMS: dict[str, Param] = {**tiers.PARAMS, "alpha": Param(0.9, 0.0, 1.0)}


def create(bundle: Bundle) -> Tiers:
    """The strategy. Raises ConfigError without a runtime, Unavailable without its files."""
    return tiers.load(NAME, PARAMS, bundle, early=True)
