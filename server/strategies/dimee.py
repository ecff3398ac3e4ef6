"""DIMEE on the server: the first confident exit for the edge, the whole model for the cloud.

Bajpai and Hanawal, "Distributed Inference on Mobile Edge and Cloud: An Early Exit based Clustering
Approach", section 1.2 and Algorithm 2.
"""

from __future__ import annotations

from server.exits import Tiers
from server.serving import Serving

NAME = "dimee"


def create(serving: Serving) -> Tiers:
    """The strategy for one profile."""
    return Tiers(serving, NAME, early=True)
