"""The whole frame without loss, classified: what the others are measured against."""

from __future__ import annotations

from common.errors import Refused
from common.messages import Query
from server.serving import Serving, no_step
from server.strategy import Memory, Work
from server.whole import WholeFrame

KEY = ("raw", "whole")


class Raw(WholeFrame):
    """Step "whole": "frame" uint8 [H, W, 3] at the input's size, in any lossless codec."""

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode the frame. Raises Refused("bad" | "unknown")."""
        if query.step != "whole":
            raise no_step(query, "whole")
        if self.serving.tensor(query, "frame").codec in ("jpeg", "webp"):
            raise Refused("bad", "a JPEG or WebP goes by the strategy jpeg")
        return Work(KEY, {"patches": self.serving.frame(query)})


def create(serving: Serving) -> Raw:
    """The strategy for one profile."""
    return Raw(serving, KEY)
