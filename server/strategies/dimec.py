"""DIMEC-DC on the server: the exit behind layer n for the edge, the whole model for the cloud.

Bajpai and Hanawal, "Distributed Inference on Mobile Edge and Cloud: A Data-Cartography based
Clustering Approach", section 1.5 and Algorithm 2.
"""

from __future__ import annotations

from server.exits import Tiers
from server.serving import Serving

NAME = "dimec"


def create(serving: Serving) -> Tiers:
    """The strategy for one profile."""
    return Tiers(serving, NAME, early=False)
